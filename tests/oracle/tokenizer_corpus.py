"""The strings of the tokenizer goldens: code, languages, spaces, digits, marks, control names, random Unicode. Always the same ones."""
import random

PYTHON = ["def parse(self, line: str) -> list[int]:", "    return [int(x, 16) for x in line.split(',') if x]", "@dataclass(frozen=True)", "class Queue(Generic[T]):",
          "    async with pool.acquire() as conn:", "if __name__ == '__main__':", "    raise ValueError(f\"bad value {x!r}\") from None", "x = {**a, 'k': 1_000_000}", "lambda x: x**2 + 3.14e-10"]
C = ["#include <stdio.h>", "static inline uint32_t rotl32(uint32_t x, int8_t r) { return (x << r) | (x >> (32 - r)); }", "\tfor (size_t i = 0; i < n; i++)", "\t\tp->next[i] ^= 0xdeadbeefULL;",
     "#define MAX(a, b) ((a) > (b) ? (a) : (b))", "    goto done;", "}\n\nint main(int argc, char **argv) {", "/* don't, can't, it's; we'll, they've, I'm, he'd, you're */", "    free(*ptr), *ptr = NULL;"]
JAVA = ["public static void main(String[] args) throws IOException {", "    private final Map<String, List<Integer>> byName = new HashMap<>();", "@Override public int hashCode() { return Objects.hash(a, b); }",
        "for (var e : map.entrySet()) System.out.println(e.getKey() + \"=\" + e.getValue());"]
SCRIPT = ["const f = async ({ a, b = 2, ...rest }) => `${a}:${b}`;", "let x = arr?.[0] ?? 'none'; // TODO(#123)", "export default function App(): JSX.Element {", "  return <div className=\"a-b\" onClick={() => set(n => n + 1)}>{n}</div>;",
          "type Pair<K extends string, V> = { [P in K]?: V };"]
RUST = ["fn main() -> Result<(), Box<dyn Error>> {", "    let v: Vec<_> = s.chars().filter(|c| !c.is_whitespace()).collect();", "impl<'a, T: 'a + Clone> Iterator for Iter<'a, T> {", "    match x { Some(n) if n > 0 => n, _ => return Err(\"no\".into()), }",
        "#[derive(Debug, Clone, PartialEq)]"]
GO = ["func (s *Server) Serve(ctx context.Context, l net.Listener) error {", "\tif err != nil {\n\t\treturn fmt.Errorf(\"serve: %w\", err)\n\t}", "type T struct {\n\tA int `json:\"a,omitempty\"`\n}", "ch := make(chan struct{}, 1); go func() { defer close(ch) }()"]
OTHER = ["SELECT u.id, COUNT(*) AS n FROM users u LEFT JOIN orders o ON o.uid = u.id GROUP BY 1 HAVING COUNT(*) > 10;", "<!DOCTYPE html>\n<html lang=\"en\">\n  <head><title>A &amp; B</title></head>", "services:\n  web:\n    image: \"nginx:1.25\"\n    ports: [\"80:80\"]",
         "{\"a\": [1, 2.5, -3e10, null, true], \"b\": {\"c\": \"\\u00e9\\n\"}}", "all: $(OBJ)\n\t@$(CC) -o $@ $^ -lm", "#!/usr/bin/env bash\nset -euo pipefail\nfor f in *.txt; do echo \"${f%.txt}\"; done", "main = print $ foldr (\\x acc -> x + acc) 0 [1..100]",
         "SECTION .data\n    msg db 'Hello', 0x0A", "\\begin{equation} \\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2} \\end{equation}", "diff --git a/x b/x\n@@ -1,3 +1,4 @@\n-old\n+new", "| a | b |\n|---|:-:|\n| 1 | `2` |", "https://example.com/a/b?c=d&e=%20f#g user@example.org 192.168.0.1 ::1"]
CODE = [PYTHON, C, JAVA, SCRIPT, RUST, GO, OTHER]

PROSE = ["The quick brown fox jumps over the lazy dog.", "It's 9 o'clock; we've got 1,234.56 dollars, don't we?", "I'M SURE THEY'LL SAY IT'S FINE, DON'T YOU'D?", "Größe, Straße, Übermut, naïve café, résumé, Ångström, œuvre", "Zażółć gęślą jaźń", "Съешь же ещё этих мягких французских булок", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
         "我能吞下玻璃而不伤身体。", "人工智能（AI）正在改变世界，2024年有1000多家公司。", "臺灣的繁體中文與簡體中文", "吾輩は猫である。名前はまだ無い。", "プログラミング言語Ｃ＋＋の入門、全角ＡＢＣ１２３", "ｶﾀｶﾅ ﾊﾟﾋﾟﾌﾟ がぎぐげご", "다람쥐 헌 쳇바퀴에 타고파", "한국어 텍스트입니다 ㅋㅋㅋ", "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥", "این یک متن فارسی است ۱۲۳",
         "שלום עולם, מה שלומך?", "नमस्ते दुनिया, आप कैसे हैं? १२३", "বাংলা ভাষা সুন্দর", "தமிழ் மொழி", "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "Tiếng Việt có nhiều dấu thanh", "ქართული ენა", "Հայերեն", "አማርኛ", "ខ្មែរ", "မြန်မာ", "ᚠᛇᚻ ᛒᛦᚦ", "𝕳𝖊𝖑𝖑𝖔 𝒲ℴ𝓇𝓁𝒹", "𐍈 𐌰 𒀀 𓀀 𠜎 𪛖"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️", "☕", "1️⃣", "🧑🏿‍💻", "🤷‍♀️", "🐈‍⬛", "🪿", "🫨", "\u200d", "\ufe0f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\x1c", "\x1f"]
NAMES = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "<|fim_prefix|>", "<|file_sep|>", "<repo_name>", "<file_sep>", "<gh_stars>", "<|im_start|", "im_end|>", "<|", "|>", "<", "<|eot_id|>", "<|im_start|>assistant\n", "<<|im_end|>>"]
DIGITS = list("0123456789") + list("０９٣۵७ⅧⅫ½¾²³①㊿𝟘𝟗") + ["\U00011de0", "\U00016ff4"]
MARKS = [chr(c) for c in range(0x300, 0x346)] + list("\u0591\u05b0\u064b\u0651\u093c\u09bc\u0e38\u0f71\u3099\u309a\u20d0") + ["\u0d3c", "\u1abf", "\U0001e130"]
COMPOSED = list("éèêëñüÅÇőữậΐ") + ["\u212b", "\u2126", "\u1e9b\u0323", "\uac00", "\uac01", "\u1100\u1161\u11a8", "\uac00\u11a7", "\uac00\u11a8", "\U000105d2\u0307", "\U00011938", "\u0958", "\u2adc", "\ufb1d", "\uf900", "e\u0301", "A\u030a", "か\u3099"]
ASCII = [chr(c) for c in range(0x20, 0x7f)]
CONTROLS = [chr(c) for c in range(0x20)] + ["\x7f", "\x80", "\x9f"]
CONTRACTIONS = ["'s", "'S", "'t", "'RE", "'ve", "'m", "'LL", "'d", "\u2019s", "'\u017f", "'", "''", "s'", "'x", "a", " ", "B", "1"]


def any_character(r):
    while True:
        c = r.choice([r.randrange(0x80), r.randrange(0x800), r.randrange(0x10000), r.randrange(0x110000)])
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def mixed(r, pools, lengths):
    return "".join(r.choice(r.choice(pools)) for _ in range(r.choice(lengths)))


def programs(r):
    for language in CODE:
        yield from language
        for indent in ("  ", "    ", "\t"):
            yield "\n".join(indent * r.randrange(4) + r.choice(language) for _ in range(6))
            yield "\r\n".join(r.choice(language) for _ in range(3))


def strings():
    r = random.Random(20241124)
    out = [""] + PROSE + EMOJI + SPACES + NAMES + COMPOSED + CONTRACTIONS + ASCII + CONTROLS
    out += list(programs(r)) + [a + b for a in PROSE for b in r.sample(EMOJI, 2)]
    out += [s * n for s in (" ", "\n", "\t", "\r\n", "a", "=", "-", "1", "中", "é", "\u3000", ".", "_") for n in (2, 3, 4, 7, 16, 63)]
    out += ["x" + s * n + t for s in (" ", "\n", "\t", " \n", "\r\n") for n in (1, 2, 5) for t in ("y", "1", "!", "", "\n")]
    for pools, lengths, n in (([SPACES, ["a", "1", "."]], (2, 4, 9), 160), ([DIGITS, ["a", " ", ".", ","]], (3, 6, 12), 140), ([CONTRACTIONS], (2, 4, 8), 140),
                              ([MARKS, COMPOSED, ["a", "e", "o"]], (2, 3, 5, 12), 260), ([NAMES, ["a", " ", "\n"]], (2, 3, 5), 160), ([EMOJI, ASCII], (2, 5, 12), 100),
                              ([ASCII], (1, 2, 4, 8, 30), 200), ([CONTROLS, ASCII], (2, 5), 60), ([PROSE], (2,), 40), ([SPACES, PROSE, NAMES, EMOJI], (3, 6), 80)):
        out += [mixed(r, pools, lengths) for _ in range(3 * n)]
    out += ["".join(any_character(r) for _ in range(r.choice((1, 2, 4, 10)))) for _ in range(1200)]
    out += ["".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(n)) for n in (39, 40, 41, 42, 80, 300, 1500)]
    out += [" ".join(r.choice(PROSE) for _ in range(12)), "\n".join(r.choice(r.choice(CODE)) for _ in range(60)), "0123456789" * 40, "/".join(r.choice(ASCII) for _ in range(300))]
    return list(dict.fromkeys(out))


def blocks():
    """Every code point between others, in 272 texts of 4,096 (surrogates left out)."""
    for first in range(0, 0x110000, 4096):
        chars = [chr(c) for c in range(first, first + 4096) if not 0xD800 <= c < 0xE000]
        yield "".join(f"x{c} {c}1{c}a" for c in chars)
