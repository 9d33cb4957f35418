"""Makes tests/golden/tokenizers: small tokenizers of every kind, trained here on text made here, and what the reference
libraries make of several hundred strings that are hard on tokenizers.

Versions: tokenizers 0.23.3, sentencepiece 0.2.3, gguf 0.19.0. Run: python tools/golden_tokenizers.py

Files: strings.json: [base64 or [base64, count] (repeated)]. NAME/: the tokenizer as it would be published. NAME.json:
{"kind", "ids": {index of string: [ids], or the SHA-256 of many}, "text": {index: decoded text, only where it is not the
string itself; null: not compared}, "plain": the same with special tokens skipped, "random": [[ids, decoded]]}. pipelines.json: one BPE model under many normalizers, pre-tokenizers, decoders and post-processors;
gguf.json: byte-level vocabulary and the ids that each tokenizer.ggml.pre gives.
"""
import base64
import hashlib
import io
import json
import pathlib
import random
import shutil

import gguf
import sentencepiece as spm
import sentencepiece.sentencepiece_model_pb2 as spm_pb
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/tokenizers"
rng = random.Random(20250710)

SENTENCES = """The quick brown fox jumps over the lazy dog. It's what they'd've said, isn't it?
She said: "I'll pay $1,234.56 on 2024-02-29 at 12:30," and he didn't answer...
def main(argv):\n    for i in range(10):\n        print(f"{i:>3} {argv[i]!r}")\n    return 0
int main(void) { char *s = "a\\tb\\n"; return s[0] == 'a' ? 0 : 1; } /* comment */
<div class="x">Hello &amp; goodbye</div> https://example.org/path?q=1&r=%20#top user@example.org
Grüße aus Köln: Äpfel, Öl, Übermut, Straße. Ça va très bien, où êtes-vous né(e) ? El niño comió piñas.
Съешь же ещё этих мягких французских булок да выпей чаю. Україна, ґанок, їжак.
Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. Το γρήγορο καφέ αλεπού πηδάει.
今日は良い天気ですね。東京タワーへ行きましょう！ カタカナとひらがな、漢字。
我能吞下玻璃而不伤身体。中文分词没有空格，２０２４年。繁體字也要。
나는 유리를 먹을 수 있어요. 그래도 아프지 않아요. 대한민국 서울특별시.
أنا قادر على أكل الزجاج و هذا لا يؤلمني. السَّلامُ عَلَيْكُم ١٢٣
אני יכול לאכול זכוכית וזה לא מזיק לי. שָׁלוֹם
मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती। १२३ ক্ষ ৎ தமிழ் తెలుగు ಕನ್ನಡ മലയാളം
ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ ខ្ញុំ ཨོཾ မြန်မာ ქართული Հայերեն አማርኛ ᏣᎳᎩ
Emoji: 😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️ ☃ ½ ² ™ … — “quoted” ‘single’ «guillemets»
aaaa aaaaaaaa 0000 1111 12345678901234567890 !!!! ???? ---- ==== ....
\tTabs\tand  double  spaces   and    more     spaces\r\nWindows lines\r\n\r\nend""".split("\n")


def corpus():
    words = [w for s in SENTENCES for w in s.split()]
    lines = list(SENTENCES)
    for _ in range(1500):
        lines.append(" ".join(rng.choice(words) for _ in range(rng.randint(3, 14))))
        lines.append(rng.choice(SENTENCES))
    return lines


def strings():
    out = ["", " ", "  ", "   ", " a", "a ", " a ", "  a  b  ", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\t", "\t\t", " \t \n ",
           "\0", "a\0b", "\x01\x02\x7f", "\u0085", "\u00a0", "a\u00a0b", "\u2028\u2029", "\u3000", "a\u3000b", "\u200b", "\ufeff",
           "\ufeffabc", "\u200d", "\u200e\u200f", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\u0378", "\u180e", "\u2581",
           "\u2581\u2581", "a\u2581b", "\u2581a \u2581b", "\u0120", "\u0120\u010a", "<0x41>", "<0x0A>", "<0xZZ>", "<0x4", "##ing", "</w>"]
    out += list(SENTENCES) + [" " + s for s in SENTENCES[:6]] + [s + " " for s in SENTENCES[6:12]]
    out += [s.upper() for s in SENTENCES[:8]] + [s[::-1] for s in SENTENCES[:12]]
    # combining marks, normal forms, case
    out += ["e\u0301", "\u00e9", "e\u0301\u0323", "e\u0323\u0301", "\u1e69", "s\u0323\u0307", "s\u0307\u0323", "\u0301", "a\u0301" * 20,
            "a" + "\u0301" * 60, "a" + "\u0301\u0323" * 30, "\u1100\u1161\u11a8", "\uac01", "\u1100\u1161", "\uac00\u11a8", "\u1112\u1161\u11ab\u1100\u1173\u11af",
            "\ufb01\ufb03", "\u2460\u2461", "\uff21\uff22\uff23 \uff11\uff12", "\u3392\u33a5", "\u212b\u00c5", "\u0130\u0131", "\u1e9e\u00df", "\u03a3\u03c2\u03c3",
            "\u01c5\u01c4\u01c6", "\u0345\u0399", "\u0958\u0915\u093c", "\u0f73\u0f71\u0f72", "\uff76\uff9e", "\u30ac\u30ab\u3099", "\u2126\u03a9",
            "x\u0338", "\u226e", "\U0001d15e", "\ufdfa", "\u3300\u337f", "\u2f00\uf900", "\u01f1\u01f3", "\u1e9b\u0323"]
    # emoji
    out += ["😀", "😀😀😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "🇩", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "❤", "☝🏿👨🏻‍🚀", "a😀b", " 😀 ", "1️⃣2️⃣", "👨\u200d", "\ufe0f", "🫠🪿🫨"]
    # right to left, controls of direction
    out += ["\u202eabc\u202c", "\u0627\u0644\u0644\u0647", "ﷲ", "\u200fאב 12 ab", "\u0660\u0661\u0662 \u06f1\u06f2"]
    # numbers, punctuation, contractions
    out += ["1", "12", "123", "1234", "12345", "1234567", "1,234,567.89", "3.14e-10", "0x1F", "½¾²³", "ⅣⅫ", "①②", "१२३४", "٣٤٥٦", "1a2b3c", "v1.2.3-rc4", "100%",
            "I'm you're he's we've they'll I'd don't", "I'M YOU'RE HE'S WE'VE THEY'LL I'D DON'T", "'s 's's 'S", "’s don’t", "''''", "'t'", "a'b'c",
            "!", "!!", "!?!?", "...", "....", "-", "--", "---", "(a)[b]{c}<d>", "a.b.c", "a,b;c:d", "\"'`´", "~^|\\/", "$€£¥₿", "+-*/=", "§¶†‡", "。、！？", "«»‹›", "a_b__c", "snake_case_name", "camelCaseName", "HTTPServer2",
            "don't stop.", "a . b , c ! d ? e ' f n't 's 've 're 'm", " .", " ,a", "a ' b", " n't", "do not"]
    # code and space runs
    out += ["if x:\n    y\n\tz\n        w", "a\n\n\nb", "a\r\n\r\nb", "a \n b", "a\n ", "   \n   \n", "x" + " " * 17 + "y", "\n" * 9 + "x", "\t" * 7 + "x", " \n" * 5, "a  \t  b",
            "for(;;){}", "#include <stdio.h>", "SELECT * FROM t WHERE a='b';", "λx.x+1", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋", "a→b⇒c", "{{ x }}{% if y %}", "\\n\\t\\u0041", "C:\\Users\\x", "$HOME/.config"]
    # special tokens in the text
    out += ["<s>", "</s>", "<unk>", "<pad>", "a<s>b", " <s> ", "<s></s>", "x </s> y", "<s", "<<s>>", "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>", " <|im_end|> a", "<|im_start|><|im_start|>",
            "<|im_", "<|endoftext|>", "a<|endoftext|>b<|endoftext|>", "[CLS] a [SEP]", "[UNK]", "[MASK]", "a[MASK]b", " [MASK] ", "<mask>", "x<mask> y", "x <mask>  y", "<user>", "a<user>b", "<user><user>", "<tag one>", "a <tag one> b", "ADDED", "xADDEDy", "x ADDED y", "added", "word", "a sword word.", "Àccent", "accent"]
    # random mixtures
    alphabet = ["a", "b", "e", "z", "A", "Q", "0", "7", " ", "  ", "\n", "\t", ".", ",", "'", "-", "_", "é", "ß", "я", "Ж", "あ", "漢", "字", "가", "힣", "ا", "ل", "ש", "क", "्", "ष", "ก", "ำ", "😀", "👍", "🏽",
                "\u200d", "\u0301", "\u2581", "\u00a0", "ﬁ", "½", "Ⅷ", "<s>", "</s>", "<", ">", "the", " the", "ing", "\0", "\u3000", "…", "“", "\x7f", "\ufeff", "𝒳", "𐍈", "\U000e0041"]
    for _ in range(130):
        out.append("".join(rng.choice(alphabet) for _ in range(rng.randint(2, 30))))
    data = [s.encode() for s in out]
    # invalid UTF-8
    data += [b"\xff", b"a\xffb", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82x", b"\xf0\x9f\x98", b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x80\x80", b"\xe2\x28\xa1",
             b"abc\xe2\x96", b"\xfe\xfe\xff\xff", b"\xf8\x88\x80\x80\x80", "Grüße".encode("latin-1"), "日本語".encode("shift-jis"), "a".encode("utf-16")]
    unique = list(dict.fromkeys(data))
    runs = [(b"a", 100000), (b" ", 100000), (b"\n", 50000), ("漢".encode(), 30000), ("☃".encode(), 30000), (b"ab ", 30000), (b"'", 50000), (b"1", 50000), ("\u0301".encode(), 20000), ("👩‍".encode(), 9000), (b"\xff", 20000), (b"the quick ", 9000)]
    return unique, runs


UNIQUE, RUNS = strings()
BYTES = UNIQUE + [s * n for s, n in RUNS]
TEXTS = [b.decode("utf-8", "replace") for b in BYTES]
assert len(UNIQUE) > 400


def digest(ids):
    """Of the long runs only a hash is kept: of the ids as little-endian 32-bit numbers."""
    return hashlib.sha256(b"".join(int(i).to_bytes(4, "little") for i in ids)).hexdigest()


def keep(i, ids):
    return list(ids) if i < len(UNIQUE) else digest(ids)


def vectors(encode, decode, indices, n_vocab, special=(), skipped=()):
    """decode(ids, skip) -> text or None (not compared)."""
    v = {"ids": {}, "text": {}, "plain": {}, "random": []}
    for i in indices:
        ids = encode(TEXTS[i])
        v["ids"][i] = keep(i, ids)
        for name, skip in (("text", False), ("plain", True)):
            text = decode(ids, skip)
            if text != TEXTS[i]:
                v[name][i] = text if text is None or len(text) < 2000 else None
    allowed = [i for i in range(n_vocab) if i not in skipped]
    for _ in range(40):
        ids = [rng.choice(allowed) for _ in range(rng.randint(1, 24))]
        v["random"].append([ids, decode(ids, False)])
    return v


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def hf_vectors(tok, indices=None):
    return vectors(lambda s: tok.encode(s).ids, lambda ids, skip: tok.decode(ids, skip_special_tokens=skip),
                   indices or range(len(TEXTS)), tok.get_vocab_size())


def publish(name, tok, kind="json", indices=None):
    (OUT / name).mkdir(parents=True, exist_ok=True)
    if kind == "json":
        write(OUT / name / "tokenizer.json", json.loads(tok.to_str()))
    write(OUT / f"{name}.json", {"kind": kind, **hf_vectors(tok, indices)})


# ---- byte-level BPE ---------------------------------------------------------------------------------------------------
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
HAN_DEEPSEEK = "[一-龥ࠀ-一가-퟿]+"
LETTERS = (r"A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}\x{370}-\x{373}\x{376}"
           r"\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}"
           r"\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}"
           r"\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}"
           r"\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}"
           r"\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}"
           r"\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}"
           r"\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}"
           r"\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}"
           r"\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}"
           r"\x{118a0}-\x{118df}\x{1e900}-\x{1e943}")


def split(pattern, behavior="isolated", invert=False):
    from tokenizers import Regex
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(regex=False, prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


PRES = {
    "gpt-2": [byte_level(True)],
    "smollm": [pre_tokenizers.Digits(True), byte_level(True)],
    "starcoder": [pre_tokenizers.Digits(True), byte_level(True)],
    "command-r": [pre_tokenizers.Digits(True), byte_level(True)],
    "olmo": [byte_level(True)],
    "llama-bpe": [split(LLAMA3), byte_level()],
    "qwen2": [split(QWEN2), byte_level()],
    "qwen35": [split(QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")), byte_level()],
    "tekken": [split(CASED % ("", "", "")), byte_level()],
    "gpt-4o": [split(CASED % (CONTRACTION, CONTRACTION, "{1,3}")), byte_level()],
    "falcon": [pre_tokenizers.Punctuation("contiguous"), byte_level(True), pre_tokenizers.Digits(False), split("[0-9][0-9][0-9]")],
    "deepseek-llm": [split("[\r\n]"), split(r"\s?[" + LETTERS + "]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"), split(HAN_DEEPSEEK),
                     pre_tokenizers.Digits(True), byte_level()],
    "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(HAN_DEEPSEEK), pre_tokenizers.Digits(True), byte_level()],
    "deepseek-v3": [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
                    split(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level()],
    "seed-coder": [split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}" + "\r\n" + r"]+|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level()],
}
NFC = {"command-r", "olmo", "qwen2", "qwen35"}
IGNORE_MERGES = {"llama-bpe", "tekken"}
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_byte_level(steps, size, normalizer=None):
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=CHATML,
                                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tok


def make_byte_level():
    tok = train_byte_level(PRES["gpt-2"], 900)
    publish("byte-level", tok)
    model = json.loads(tok.to_str())["model"]
    # The same as vocab.json + merges.txt, with BOS in front (as opt has it).
    tok.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    files = {"vocab.json": json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":")),
             "merges.txt": "#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in model["merges"]),
             "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<|endoftext|>",
                                                  "model_max_length": 10**30,
                                                  "added_tokens_decoder": {str(i): {"content": t, "special": True} for i, t in enumerate(CHATML)}})}
    publish("vocab-merges", tok, "vocab")
    for name, text in files.items():
        (OUT / "vocab-merges" / name).write_text(text)
    # Qwen2 from vocab.json + merges.txt
    tok = train_byte_level(PRES["qwen2"], 800, normalizers.NFC())
    model = json.loads(tok.to_str())["model"]
    publish("vocab-merges-qwen2", tok, "vocab")
    (OUT / "vocab-merges-qwen2/vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":")))
    (OUT / "vocab-merges-qwen2/merges.txt").write_text("".join(" ".join(m) + "\n" for m in model["merges"]))
    (OUT / "vocab-merges-qwen2/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    (OUT / "vocab-merges-qwen2/added_tokens.json").write_text(json.dumps({t: i for i, t in enumerate(CHATML)}))
    (OUT / "vocab-merges-qwen2/special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "additional_special_tokens": CHATML[1:]}))


def make_gguf_byte_level():
    """Merges learned without any cutting, so that a wrong cut shows in the ids."""
    tok = train_byte_level([byte_level()], 1100)
    model = json.loads(tok.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    out = {"tokens": tokens, "merges": [" ".join(m) for m in model["merges"]], "types": [3] * 3 + [1] * (len(tokens) - 3), "pre": {}}
    for name, steps in PRES.items():
        tok = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], ignore_merges=name in IGNORE_MERGES))
        tok.add_special_tokens(CHATML)
        tok.normalizer = normalizers.NFC() if name in NFC else None
        tok.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tok.decoder = decoders.ByteLevel()
        out["pre"][name] = {i: keep(i, tok.encode(TEXTS[i]).ids) for i in list(range(0, len(UNIQUE), 3)) + list(range(len(UNIQUE), len(TEXTS), 3))}
    write(OUT / "gguf.json", out)


# ---- SentencePiece ----------------------------------------------------------------------------------------------------
def train_spm(model_type, size, **options):
    model = io.BytesIO()
    options = {"user_defined_symbols": ["<user>", "<tag one>"], "control_symbols": ["<pad>"], "minloglevel": 2, "num_threads": 1, "hard_vocab_limit": model_type != "unigram", **options}
    spm.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=model, model_type=model_type, vocab_size=size, **options)
    return model.getvalue()


SPM = {
    "spm-bpe": ("bpe", 1200, dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                                  allow_whitespace_only_pieces=True, character_coverage=0.98)),
    "spm-bpe-nfkc": ("bpe", 1200, dict(normalization_rule_name="nmt_nfkc", character_coverage=0.98, user_defined_symbols=["<user>"])),
    "spm-bpe-crossing": ("bpe", 1000, dict(byte_fallback=True, split_by_whitespace=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
                                           add_dummy_prefix=False, character_coverage=0.98)),
    "spm-unigram": ("unigram", 700, dict(normalization_rule_name="nmt_nfkc", character_coverage=0.98)),
    "spm-unigram-bytes": ("unigram", 900, dict(byte_fallback=True, normalization_rule_name="nfkc_cf", remove_extra_whitespaces=False, add_dummy_prefix=False,
                                               character_coverage=0.98)),
    "spm-unigram-suffix": ("unigram", 700, dict(treat_whitespace_as_suffix=True, normalization_rule_name="nmt_nfkc", character_coverage=0.98)),
}


def spm_vectors(data):
    sp = spm.SentencePieceProcessor(model_proto=data)
    hidden = {i for i in range(sp.get_piece_size()) if sp.is_control(i) or sp.is_unknown(i)}

    def decode(ids, skip):  # unknown pieces: SentencePiece writes " ⁇ ", the server the token's text, as Hugging Face does
        return None if any(sp.is_unknown(i) for i in ids) else sp.decode(list(ids))
    return vectors(sp.encode, decode, range(len(TEXTS)), sp.get_piece_size(), skipped=hidden)


def unused_pieces(data):
    """Every 9th longer piece becomes unused: encoding must take it apart again."""
    m = spm_pb.ModelProto.FromString(data)
    long = [p for p in m.pieces if p.type == 1 and len(p.piece) > 2]
    for p in long[::9]:
        p.type = 5
    return m.SerializeToString()


def make_sentencepiece():
    made = {name: train_spm(kind, size, **options) for name, (kind, size, options) in SPM.items()}
    made["spm-bpe-unused"] = unused_pieces(made["spm-bpe"])
    made["spm-unigram-unused"] = unused_pieces(made["spm-unigram"])
    for name, data in made.items():
        (OUT / name).mkdir(parents=True, exist_ok=True)
        (OUT / name / "tokenizer.model").write_bytes(data)
        write(OUT / f"{name}.json", {"kind": "spm", **spm_vectors(data)})
    return made


def make_gguf(made):
    """The same vocabularies as GGUF metadata, written by the gguf package."""
    for name in ("spm-bpe", "spm-unigram", "spm-bpe-unused"):
        m = spm_pb.ModelProto.FromString(made[name])
        w = gguf.GGUFWriter(OUT / name / "vocab.gguf", "llama")
        w.add_tokenizer_model("t5" if m.trainer_spec.model_type == 1 else "llama")
        w.add_tokenizer_pre("default")
        w.add_token_list([p.piece.encode() for p in m.pieces])
        w.add_token_scores([p.score for p in m.pieces])
        w.add_token_types([p.type for p in m.pieces])
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        w.add_remove_extra_whitespaces(m.normalizer_spec.remove_extra_whitespaces)
        if m.normalizer_spec.precompiled_charsmap:
            w.add_precompiled_charsmap(m.normalizer_spec.precompiled_charsmap)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.close()


def spm_merges(m):
    """As transformers' converter makes them: all pairs of pieces that join to a piece, best piece first."""
    score = {p.piece: p.score for p in m.pieces}
    index = {p.piece: i for i, p in enumerate(m.pieces)}
    pairs = []
    for piece, s in score.items():
        local = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in score and piece[k:] in score]
        pairs += [(a, b, s) for a, b in sorted(local, key=lambda x: (index[x[0]], index[x[1]]))]
    return [(a, b) for a, b, _ in sorted(pairs, key=lambda x: x[2], reverse=True)]


def make_converted(made):
    """tokenizer.json as transformers makes it of SentencePiece models."""
    m = spm_pb.ModelProto.FromString(made["spm-bpe"])
    vocab = {p.piece: i for i, p in enumerate(m.pieces)}
    bpe = models.BPE(vocab=vocab, merges=spm_merges(m), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    special = [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>", "<pad>")]
    user = [AddedToken(t, normalized=False) for t in ("<user>", "<tag one>")]
    tok = Tokenizer(bpe)
    tok.add_special_tokens(special)
    tok.add_tokens(user)
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    publish("llama-legacy", tok)
    tok.normalizer = None
    tok.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", False)
    publish("llama-metaspace", tok, indices=range(0, len(TEXTS), 2))

    m = spm_pb.ModelProto.FromString(made["spm-unigram"])
    tok = Tokenizer(models.Unigram([(p.piece, p.score) for p in m.pieces], unk_id=0, byte_fallback=False))
    tok.add_special_tokens(special)
    tok.add_tokens(user)
    tok.normalizer = normalizers.Sequence([normalizers.Precompiled(m.normalizer_spec.precompiled_charsmap), normalizers.Replace(__import__("tokenizers").Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always")])
    tok.decoder = decoders.Metaspace("▁", "always")
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    publish("t5", tok)
    m = spm_pb.ModelProto.FromString(made["spm-unigram-bytes"])
    tok = Tokenizer(models.Unigram([(p.piece, p.score) for p in m.pieces], unk_id=0, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tok.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never", True)
    tok.decoder = decoders.Sequence([decoders.Metaspace("▁", "never"), decoders.ByteFallback(), decoders.Fuse()])
    publish("unigram-bytes", tok, indices=range(0, len(TEXTS), 2))


# ---- words ------------------------------------------------------------------------------------------------------------
def make_words():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for name, lower in (("bert-uncased", True), ("bert-cased", False)):
        tok = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        tok.normalizer = normalizers.BertNormalizer(lowercase=lower)
        tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tok.decoder = decoders.WordPiece()
        tok.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=700, show_progress=False, special_tokens=special))
        tok.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        publish(name, tok, indices=None if lower else range(0, len(TEXTS), 2))
    tok = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.train_from_iterator(corpus(), trainers.WordLevelTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"]))
    tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    publish("word-level", tok, indices=range(0, len(TEXTS), 2))
    tok = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    tok.decoder = decoders.BPEDecoder("</w>")
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<unk>"], end_of_word_suffix="</w>"))
    publish("bpe-suffix", tok, indices=range(0, len(TEXTS), 2))


# ---- one model, many pipelines ------------------------------------------------------------------------------------------
def make_pipelines():
    from tokenizers import Regex
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.train_from_iterator([line[:60] for line in corpus()], trainers.BpeTrainer(vocab_size=900, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"], limit_alphabet=160))
    base = json.loads(tok.to_str())
    P, N, D = pre_tokenizers, normalizers, decoders
    cases = [{"pre_tokenizer": P.Split(p, b, i)} for p in (Regex(r"\d+|[a-e]+"), " ", Regex(r"\s+$|^x"), Regex(r"(?=[A-Z])|\b")) for i in (False, True)
             for b in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")]
    cases += [{"pre_tokenizer": P.Metaspace("▁", s, k)} for s in ("always", "first", "never") for k in (True, False)]
    cases += [{"pre_tokenizer": P.Punctuation(b)} for b in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")]
    cases += [{"pre_tokenizer": p} for p in (P.Digits(True), P.Digits(False), P.Whitespace(), P.WhitespaceSplit(), P.BertPreTokenizer(), P.CharDelimiterSplit("e"),
                                            P.ByteLevel(True, use_regex=True), P.ByteLevel(False, use_regex=False),
                                            P.Sequence([P.Metaspace("▁", "first", False), P.Digits(True)]), P.Sequence([P.WhitespaceSplit(), P.ByteLevel(True)]))]
    cases += [{"normalizer": n} for n in (N.NFC(), N.NFD(), N.NFKC(), N.NFKD(), N.Lowercase(), N.StripAccents(), N.Nmt(), N.ByteLevel(), N.Strip(True, False), N.Strip(False, True),
                                          N.Strip(), N.Prepend("<<"), N.Replace("a", "bb"), N.Replace(Regex(r"\s+"), " "), N.Replace(Regex("^"), ">"), N.Replace("e", ""),
                                          N.Sequence([N.NFKC(), N.Lowercase(), N.Strip(), N.Prepend("▁"), N.Replace(" ", "▁")]),
                                          N.BertNormalizer(True, True, None, True), N.BertNormalizer(False, True, True, False), N.BertNormalizer(True, False, False, True))]
    cases += [{"decoder": d} for d in (D.Fuse(), D.Metaspace("▁", "first"), D.Metaspace("▁", "never"), D.WordPiece("e", True), D.WordPiece("e", False), D.BPEDecoder("e"), D.ByteFallback(),
                                       D.Strip("e", 1, 0), D.Sequence([D.Fuse(), D.Strip("e", 2, 0)]), D.Sequence([D.Replace("e", "EE"), D.Fuse(), D.Strip("E", 3, 0)]))]
    cases += [{"post_processor": processors.TemplateProcessing(single="<s> <s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])},
              {"post_processor": processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])])}]
    added = [AddedToken("ADDED"), AddedToken("word", single_word=True), AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False), AddedToken("Àccent", normalized=True),
             AddedToken("<user>", lstrip=True), AddedToken("the", rstrip=True)]
    cases += [{"added": True}, {"added": True, "normalizer": N.Lowercase()}, {"added": True, "normalizer": N.Sequence([N.StripAccents(), N.Lowercase()]), "pre_tokenizer": P.Metaspace("▁", "first")},
              {"added": True, "pre_tokenizer": P.Metaspace("▁", "always", False)}]
    out = []
    for k, case in enumerate(cases):
        t = Tokenizer.from_str(json.dumps(base))
        if case.pop("added", False):
            t.add_tokens(added)
        for part, value in case.items():
            setattr(t, part, value)
        whole = json.loads(t.to_str())
        override = {key: whole[key] for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor", "added_tokens") if whole[key] != base[key]}
        indices = list(range(k % 3, len(UNIQUE), 3))
        v = hf_vectors(t, indices)
        if "decoder" not in case:
            v.update(text={}, plain={}, random=[])
            v["text"] = {i: None for i in v["ids"]}
            v["plain"] = v["text"]
        out.append({"override": override, **v})
    write(OUT / "pipelines.json", {"base": base, "cases": out})


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    b64 = lambda b: base64.b64encode(b).decode()
    write(OUT / "strings.json", [b64(s) for s in UNIQUE] + [[b64(s), n] for s, n in RUNS])
    make_byte_level()
    make_gguf_byte_level()
    made = make_sentencepiece()
    make_gguf(made)
    make_converted(made)
    make_words()
    make_pipelines()


main()
