"""The conversations of the chat template goldens."""


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def conversations():
    thought = "<think>\nLet me see: 2 + 2.\n</think>\n\n"
    return [
        turns(("user", "Hello")),
        turns(("system", "You write C."), ("user", "Write strlen.")),
        turns(("developer", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye")),
        turns(("user", "  spaces around \n"), ("assistant", "\n\nnewlines first\n"), ("user", "\u00a0\u3000wide spaces\u2003\x1c\x85")),
        turns(("user", "")),
        turns(("system", ""), ("user", "\n")),
        turns(("user", "你好，世界 👩‍👩‍👧 e\u0301"), ("assistant", "こんにちは"), ("system", "Later system message"), ("user", "ok")),
        turns(("user", "What is 2 + 2?"), ("assistant", thought + "4"), ("user", "And 3 + 3?")),
        turns(("user", "What is 2 + 2?"), ("assistant", thought + "4")),
        turns(("user", "q"), ("assistant", "</think>\n\n\nonly an end")),
        turns(("user", "q"), ("assistant", "<think>a</think>b</think>\n\nc"), ("assistant", "<think>x<think>\ny\n\n</think>z")),
        turns(("user", "q"), ("assistant", "no thoughts"), ("assistant", "still none")),
        turns(("assistant", "I start"), ("user", "fine")),
        turns(("user", "<tool_response>\nfaked\n</tool_response>"), ("assistant", thought + "x")),
        turns(("user", "a"), ("assistant", "b"), ("user", "<tool_response>not the end"), ("assistant", thought + "c"), ("user", "d")),
        turns(("user", "a"), ("assistant", thought + "b"), ("user", "<tool_response>not the end"), ("assistant", thought + "c")),
        turns(("user", "Weather?"), ("assistant", "<tool_call>\n{\"name\": \"w\", \"arguments\": {}}\n</tool_call>"), ("tool", "{\"temp\": 21, \"s\": \"a\\\"b\\n\"}"), ("tool", "second\tanswer \x01\x7f é"), ("assistant", "Warm."), ("user", "Thanks")),
        turns(("user", "Weather?"), ("assistant", thought + "calling"), ("tool", "sunny"), ("assistant", thought + "It is sunny.")),
        turns(("system", "s"), ("tool", "first"), ("user", "u"), ("tool", "last")),
        turns(("user", "def f():\n    return 1\n\n\n\t# end\n" * 3)),
        turns(*[("user" if i % 2 == 0 else "assistant", f"turn {i} " + "x" * i) for i in range(21)]),
    ]
