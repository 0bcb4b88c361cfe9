"""A small local model server for trying the pipeline: OCR plus rules, with drawn street signs to read.

Not a vision-language model and not meant for training data. It runs as a child process and speaks the plain
chat-completions protocol; nothing here imports the rest of `distil`, and nothing there imports this.
"""
