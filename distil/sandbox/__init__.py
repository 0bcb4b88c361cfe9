"""Run model-written Python on a picture, contained by the kernel.

    with Sandbox(timeout_seconds=10) as sandbox:
        result = sandbox.run("result_image = image.rotate(45)", picture)

Threat: code from a model runs on the user's machine, perhaps as root, thousands of times. It shall read and
write no file, reach no network, start and signal no process, see no secret, outlive no call and leave
nothing for the next one; ordinary PIL and numpy code shall just work.

Covered, each with attacks in tests/sandbox_corpus: files and their metadata, environment and memory of the
caller, network, processes and signals, kernel calls off a short list, time, memory, output, descriptors,
the reply (checked, never unpickled or decoded), state between calls.

Not covered: faults of the kernel behind the few calls that are allowed, and of the processor (side channels).
Put a container or a virtual machine around the whole program for that: docs/sandbox.md.

Parts: sandbox (the caller's side) with server_process and exchange; fork_server (forks, reaps, kills),
jail (the kernel's layers), job (one run), preload (what can be imported), frames and control (what goes
between them), bounds (time, memory, the layers that were found).
"""
