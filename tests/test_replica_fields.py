"""Replicas that do not take the same request fields: all are asked before the first sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, is_probe
from test_settings_sent import answers, assert_settings_are_what_was_sent, distil, records, refusing, traces


@pytest.fixture(scope="module")
def few_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(
        tmp_path_factory.mktemp("few") / "photos", [photo_bytes(n, (64, 48)) for n in range(4)]
    )


def both(*servers: ScriptedTeacher) -> ScriptedTeacher:
    """What `distil` takes as a server, of several."""
    return SimpleNamespace(api_base=",".join(server.api_base for server in servers))  # type: ignore[return-value]


def sampled(*servers: ScriptedTeacher) -> list[dict[str, object]]:
    return [request for server in servers for request in server.requests if not is_probe(request)]


@pytest.mark.parametrize("flags", [(), ("--tool_mode", "text"), ("--tool_mode", "native")], ids=str)
@pytest.mark.parametrize("refused", ["seed", "temperature", "max_tokens"])
def test_a_field_that_one_replica_refuses_is_sent_to_none(
    refused: str, flags: tuple[str, ...], few_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(answers) as a, ScriptedTeacher(refusing(refused)) as b:
        code, _ = distil(both(a, b), few_photos, tmp_path, *flags, "--num_samples", "2")
        assert code == 0
        assert sampled(a) and sampled(b)
        for trace in traces(tmp_path):
            assert_settings_are_what_was_sent(trace["settings"], sampled(a, b))
        num_probes = [sum(map(is_probe, server.requests)) for server in (a, b)]
        assert num_probes == [1, 2], "one each, and one more for the field that is refused"
        spent = records(tmp_path)[-1]["spent"]
        assert spent["answered"]["requests"] == 2 + len(sampled(a, b)), "the probes are counted"
        code, _ = distil(both(a, b), few_photos, tmp_path, *flags, "--num_samples", "4")
        assert code == 0 and len(traces(tmp_path)) == 4
        assert [sum(map(is_probe, server.requests)) for server in (a, b)] == num_probes, "it is remembered"


def test_a_field_that_a_replica_refuses_in_mid_run_is_found_by_the_next_run(
    few_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(answers) as a, ScriptedTeacher(refusing("seed", since=1)) as b:
        with pytest.raises(Exception, match="refuses a request field that was taken before"):
            distil(both(a, b), few_photos, tmp_path)
        code, _ = distil(both(a, b), few_photos, tmp_path, "--on_change", "keep")
    assert code == 0 and len(traces(tmp_path)) == 4


def test_a_replica_that_is_not_there_or_takes_no_sample_is_passed_over(
    few_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(answers) as gone:
        pass
    with ScriptedTeacher(answers) as a, ScriptedTeacher(refusing("seed")) as c:
        code, text = distil(both(a, gone, c), few_photos, tmp_path)
        assert code == 0 and len(traces(tmp_path)) == 4
        assert_settings_are_what_was_sent(traces(tmp_path)[0]["settings"], sampled(a, c))
    assert text.count("A replica is not there: ") == 1
