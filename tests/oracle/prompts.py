"""The prompts of the real model's goldens: kinds of text that a code assistant meets, ASCII and not."""

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

REVIEW = '''def mean(values):
    total = 0
    for i in range(len(values) + 1):
        total += values[i]
    return total / len(values)
'''

SUBJECTS = ["The gateway", "A worker", "The scheduler", "Every tenant", "The ledger", "A queue", "The tokenizer", "One replica"]
VERBS = ["accepts", "checks", "forwards", "counts", "rejects", "records", "balances", "retries"]
OBJECTS = ["each request", "the quota", "a stream of tokens", "the usage row", "an expired key", "the longest prompt", "a batch of jobs", "every error"]
REASONS = ["before it answers", "because the limit is shared", "while the model decodes", "so that nothing is lost", "once per second", "in the order of arrival"]


def chat(*messages):
    turns = [("system", SYSTEM)] + list(messages)
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def long_document(count, limit):
    """Sentences that are numbered and never repeat exactly, until the chat prompt has about `limit` tokens."""
    sentences, i = [], 0
    while True:
        prompt = chat(("user", "Summarize these notes in one sentence.\n\n" + " ".join(sentences)))
        if len(sentences) % 20 == 0 and count(prompt) >= limit:
            return prompt
        subject, verb = SUBJECTS[i % 8], VERBS[(i // 3 + i) % 8]
        sentences.append(f"{subject} {verb} {OBJECTS[(i // 8 + 2 * i) % 8]} {REASONS[i % 6]} (note {i}).")
        i += 1


def smollm2_prompts(count):
    """(name, text) pairs; count(text) is the number of tokens of a text."""
    return [
        ("chat", chat(("user", "What is the capital of France?"))),
        ("chat-turns", chat(("user", "Hi, I am Ada."), ("assistant", "Hello Ada! How can I help you today?"), ("user", "What is my name? Answer in one word."))),
        ("chat-tests", chat(("user", "Write unit tests in Python for a function add(a, b)."))),
        ("chat-review", chat(("user", "Find the bug in this function:\n\n```python\n" + REVIEW + "```"))),
        ("code-python", "import json\n\n\ndef read_config(path):\n    \"\"\"Reads a JSON file and returns a dict.\"\"\"\n    with open(path) as f:\n"),
        ("code-c", "#include <stdio.h>\n\nint main(int argc, char **argv) {\n\tfor (int i = 0; i < argc; i++)\n\t\t"),
        ("sql", "-- users without an order in 2024\nSELECT u.id, u.name\nFROM users u\nLEFT JOIN orders o ON"),
        ("json", '{"name": "tiergate", "version": "1.0.0", "scripts": {"test": "'),
        ("chinese", "人工智能是计算机科学的一个分支，它的目标是"),
        ("chinese-chat", chat(("user", "请用中文介绍一下北京。"))),
        ("emoji", "Great job team! 🎉🚀 Our new release 👩‍💻 is out and the users say: 😀"),
        ("scripts", "Straße, naïve café, Привет мир, مرحبا بالعالم, नमस्ते, こんにちは世界. Translate all of it:"),
        ("digits", "1 + 1 = 2\n12 + 30 = 42\n123 + 456 = 579\n1000 + 2345 ="),
        ("one-token", "The"),
        ("long", long_document(count, 3000)),
    ]
