/* Inside of the tokenizer: shared by src/text/tokenizer*.c and detok.c only.
 *
 * A tokenizer is a pipeline, the same one as in Hugging Face `tokenizers`:
 *   added tokens (raw) -> normalizers -> added tokens (normalized) -> pre-tokenizers -> model (BPE, unigram)
 *   -> post-processor;  and back: decoders.
 * Every source of a vocabulary (tokenizer.json, SentencePiece, vocab.json + merges.txt, GGUF) builds the same struct.
 *
 * Byte-level tokenizers ("bytes_direct"): when ByteLevel is the last pre-tokenizer, words stay raw bytes and the table
 * `by_bytes` is keyed by what tokens stand for, so that the text is never rewritten in the byte alphabet.
 */
#ifndef INFERD_TEXT_TOKENIZER_IMPL_H
#define INFERD_TEXT_TOKENIZER_IMPL_H

#include "base/arena.h"
#include "text/tokenizer.h"

#include <jansson.h>

#define TOKENIZER_IDS_MAX         (1u << 22)
#define TOKENIZER_TOKEN_BYTES_MAX 8192u
#define TOKENIZER_STEPS_MAX       16u
#define TOKENIZER_NEST_MAX        8u /* Sequence in Sequence */
#define TOKENIZER_MEMORY_MAX      ((size_t)2 << 30)
#define TOKENIZER_AFFIX_MAX       16u   /* ids that a post-processor may put on one side */
#define TOKENIZER_EXPAND_MAX      64u   /* times that normalizing may lengthen a text */
#define UNIGRAM_UNKNOWN_PENALTY   10.0  /* an unknown character scores this below the least token */
#define WORDPIECE_CHARS_MAX       400u  /* max_input_chars_per_word; time is its square */
#define WORDPIECE_PREFIX_MAX      64u   /* bytes of continuing_subword_prefix */
#define DETOK_PENDING_MAX         4096u /* byte tokens that may wait for the end of their run */

struct regex;
struct regex_scratch;

/* ---- tables ------------------------------------------------------------------------------------------------------ */
/* Strings to ids, open addressing: a slot holds 32 bits of the hash and id + 1. keys[id] belongs to somebody else. */
struct token_table {
    uint64_t *slots;
    size_t mask;
    const struct str *keys;
    uint64_t seed;
};

/* Pairs of ids to (rank, merged id). */
struct pair_slot {
    uint64_t key; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank;
    int32_t merged;
};

struct pair_table {
    struct pair_slot *slots;
    size_t mask;
    uint64_t seed;
};

/* Byte trie: edges (node, byte) -> node in one open-addressed table; node 0 is the root. */
struct trie {
    uint64_t *slots; /* (node << 8 | byte) + 1 */
    uint32_t *targets;
    size_t mask;
    int32_t *values; /* [n_nodes] value at a node or -1 */
    size_t n_nodes, cap_nodes;
    size_t n_edges;
    uint8_t first[256]; /* 1: some entry begins with this byte */
};

/* ---- steps ------------------------------------------------------------------------------------------------------- */
enum norm_kind {
    NORM_NFC,
    NORM_NFD,
    NORM_NFKC,
    NORM_NFKD,
    NORM_LOWERCASE,
    NORM_REPLACE,
    NORM_PREPEND,
    NORM_STRIP,
    NORM_STRIP_ACCENTS,
    NORM_CHARSMAP,
    NORM_NMT,
    NORM_BYTE_LEVEL,
    NORM_STRIP_MARKS,
    NORM_BERT_CLEAN,
    NORM_BERT_CJK,
    NORM_SENTENCEPIECE
};

struct pattern {
    struct str literal; /* used when regex is NULL */
    struct regex *regex;
};

struct charsmap {
    const uint32_t *units; /* double array */
    size_t n_units;
    struct str strings; /* replacements, each ended by NUL */
};

/* SentencePiece's own normalizer (normalizer_spec of tokenizer.model). */
struct spm_norm {
    int prefix;       /* a space goes in front (or behind, with `suffix`) */
    int first_only;   /* ... of the very first piece of the text only, and only if it does not begin with one */
    int remove_extra; /* spaces at both ends go, runs of them become one */
    int escape;       /* spaces become U+2581 */
    int suffix;
};

struct norm_step {
    enum norm_kind kind;
    struct pattern pattern;
    struct str content;
    int left, right;          /* strip */
    struct charsmap charsmap; /* units NULL: none */
    struct spm_norm spm;
};

enum pre_kind { PRE_SPLIT, PRE_BYTE_LEVEL, PRE_METASPACE, PRE_WHITESPACE_SPLIT, PRE_DIGITS, PRE_PUNCTUATION, PRE_FIXED };

enum split_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_MERGED_PREVIOUS, SPLIT_MERGED_NEXT, SPLIT_CONTIGUOUS };
enum prepend_scheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct pre_step {
    enum pre_kind kind;
    struct pattern pattern;
    enum split_behavior behavior;
    int invert;
    int prefix_space;    /* ByteLevel */
    int use_regex;       /* ByteLevel */
    int split;           /* Metaspace */
    int individual;      /* Digits */
    size_t fixed_length; /* FixedLength: characters */
    enum prepend_scheme scheme;
    struct str content; /* Metaspace's replacement */
};

enum dec_kind { DEC_BYTE_LEVEL, DEC_REPLACE, DEC_BYTE_FALLBACK, DEC_FUSE, DEC_STRIP, DEC_METASPACE, DEC_WORDPIECE, DEC_BPE };

struct dec_step {
    enum dec_kind kind;
    struct pattern pattern;
    struct str content; /* replacement; strip's character; prefix or suffix */
    size_t start, stop; /* strip */
    int first_dropped;  /* Metaspace: the first token loses its replacement characters */
    int cleanup;        /* WordPiece */
    int by_character;   /* ByteFallback as in SentencePiece: a bad byte spoils itself, not its whole run */
};

/* ---- added tokens ------------------------------------------------------------------------------------------------ */
struct added_token {
    int32_t id;
    struct str content;
    int single_word, lstrip, rstrip, normalized, special;
};

enum model_kind {
    MODEL_BPE,     /* merges by rank */
    MODEL_SPM_BPE, /* merges by the score of what they make */
    MODEL_UNIGRAM,
    MODEL_WORDPIECE,
    MODEL_WORDLEVEL
};

enum token_flag {
    TOKEN_ADDED = 1,
    TOKEN_SPECIAL = 2,
    TOKEN_HIDDEN = 4, /* the model must not make it out of text (SentencePiece: control, unknown, byte) */
    TOKEN_MODEL = 8,
    TOKEN_UNUSED = 16,
    TOKEN_USER = 32, /* SentencePiece's types of the same names */
};

struct named_token {
    struct str name, content;
};
#define TOKENIZER_NAMED_MAX 64u

struct tokenizer {
    struct arena arena;
    uint64_t seed;

    /* vocabulary */
    size_t n_ids;
    struct str *model_tokens; /* [n_ids] tokens of the model; empty where there is none */
    struct str *tokens;       /* [n_ids] the same with added tokens on top */
    struct str *bytes;        /* [n_ids] what a token stands for in running text */
    uint8_t *flags;           /* [n_ids] enum token_flag */
    struct token_table by_token;
    int texts_differ;    /* no two model tokens have the same text */
    int32_t merged_last; /* what the merge put last makes: the next one mostly makes the next id */

    struct added_token *added;
    size_t n_added, cap_added;
    struct str *added_keys; /* [n_added] contents, keys of added_index */
    struct token_table added_index;
    struct trie raw_trie, normal_trie; /* values: index in `added` */
    int has_raw, has_normal;

    struct norm_step norm[TOKENIZER_STEPS_MAX];
    size_t n_norm;
    struct pre_step pre[TOKENIZER_STEPS_MAX];
    size_t n_pre;
    struct dec_step dec[TOKENIZER_STEPS_MAX];
    size_t n_dec;
    int clean_up; /* clean_up_tokenization_spaces */

    enum model_kind model;
    int32_t unk_id; /* -1: none */
    int fuse_unk, byte_fallback, ignore_merges;
    struct str subword_prefix, word_suffix;
    int32_t byte_fallback_id[256];

    /* BPE */
    struct pair_table pairs;
    int32_t char_id[128]; /* ids of single ASCII characters */
    int bytes_direct;
    int32_t byte_id[256];
    struct token_table by_bytes;
    uint8_t *single; /* [n_ids] 0 not known yet, 1 the token's own text encodes to the token alone, 2 it does not */

    /* Where "▁" may be cut off from the byte in front of it because no token holds the two: long texts without other
     * words become short ones. */
    int cuts_spaces;
    uint8_t joins_space[256];

    /* SentencePiece and unigram */
    float *scores_spm; /* [n_ids] SPM_BPE, and unigram of SentencePiece */
    struct trie user;  /* user-defined pieces; values: ids */
    int has_unused;
    double *scores;               /* [n_ids] unigram */
    double unk_score, user_score; /* user_score: per byte */
    int float_scores;             /* sums are rounded to float, as SentencePiece does */
    struct trie pieces;

    size_t word_chars_max; /* WordPiece */

    /* post-processor */
    int32_t before[TOKENIZER_AFFIX_MAX], after[TOKENIZER_AFFIX_MAX];
    size_t n_before, n_after;

    struct named_token named[TOKENIZER_NAMED_MAX];
    size_t n_named;
    int32_t bos, eos;
};

/* ---- tokenizer_vocab.c ------------------------------------------------------------------------------------------- */
uint64_t token_hash(uint64_t seed, struct str s);
bool token_table_init(struct token_table *tt, const struct str *keys, size_t n_entries, uint64_t seed);
void token_table_release(struct token_table *tt);
/* Later equal keys replace earlier ones: returns the id that had the key, -1: none. */
int32_t token_table_put(struct token_table *tt, int32_t id);
int32_t token_table_find(const struct token_table *tt, struct str key);

bool pair_table_init(struct pair_table *pt, size_t n_entries, uint64_t seed);
void pair_table_release(struct pair_table *pt);
void pair_table_put(struct pair_table *pt, int32_t left, int32_t right, uint32_t rank, int32_t merged);

static inline const struct pair_slot *pair_table_find(const struct pair_table *pt, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = (key ^ pt->seed) * 0x9e3779b97f4a7c15u;
    for (size_t i = (h ^ h >> 32) & pt->mask;; i = (i + 1) & pt->mask) {
        const struct pair_slot *slot = &pt->slots[i];
        if (slot->key == key)
            return slot;
        if (slot->key == UINT64_MAX)
            return NULL;
    }
}

bool trie_init(struct trie *tr);
void trie_release(struct trie *tr);
/* The first of equal keys stays. */
bool trie_put(struct trie *tr, struct str key, int32_t value);
/* Child of `node` by `byte`; 0 when there is none. */
uint32_t trie_next(const struct trie *tr, uint32_t node, unsigned char byte);
/* Length of the longest entry that begins at s[at], and its value; 0: none. */
size_t trie_longest(const struct trie *tr, struct str s, size_t at, int32_t *value);

/* Makes an empty tokenizer; ids 0..n_ids-1. */
struct tokenizer *tokenizer_make(size_t n_ids, struct err *err);
/* Gives the model token `id` its text (copied). False (err set): twice the same id, too long, out of memory. */
bool tokenizer_set_token(struct tokenizer *t, int32_t id, struct str text, struct err *err);
/* Adds an added token; grows the id range when needed; a content that is there already is changed to `a`. */
bool tokenizer_add(struct tokenizer *t, const struct added_token *a, struct err *err);
/* After all model tokens are set: string table. Needed before merges and added tokens. */
bool tokenizer_index(struct tokenizer *t, struct err *err);
/* After everything is set: byte tables, tries, flags. */
bool tokenizer_finish(struct tokenizer *t, struct err *err);
/* Id that text gives in the model's own vocabulary, -1 none. */
int32_t tokenizer_model_id(const struct tokenizer *t, struct str text);
bool tokenizer_set_named(struct tokenizer *t, struct str name, struct str content, struct err *err);
/* One merge: ids by text; the result must be a token. what: "merge 17", for messages. */
bool tokenizer_put_merge(struct tokenizer *t, struct str left, struct str right, size_t rank, struct err *err);
struct str tokenizer_copy(struct tokenizer *t, struct str s);

/* "<0x1F>": its byte, -1 for other tokens. */
int token_fallback_byte(struct str s);

/* Byte alphabet of GPT-2: code point of byte b, and back (-1: not in the alphabet). */
uint32_t byte_alphabet(unsigned char b);
int byte_alphabet_value(uint32_t c);

/* UTF-8 step at s (len > 0): >0 length of a valid character; 0: invalid, *skip is the maximal invalid part;
 * -1: a valid beginning that the end of the text cuts. */
int utf8_step(const unsigned char *s, size_t len, size_t *skip);
/* Appends `s` to `out` with invalid parts replaced by U+FFFD. */
bool utf8_append_lossy(struct buf *out, struct str s);
/* Fast whole-text check. */
bool utf8_is_valid(struct str s);
/* Decodes the character at *at of valid UTF-8 and advances. */
static inline uint32_t utf8_get(struct str s, size_t *at)
{
    const unsigned char *p = (const unsigned char *)s.ptr + *at;
    if (p[0] < 0x80)
        return *at += 1, p[0];
    if (p[0] < 0xe0)
        return *at += 2, (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    if (p[0] < 0xf0)
        return *at += 3, (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    return *at += 4,
           (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}
size_t utf8_put(uint32_t c, char *out);

/* Character classes as Rust's char methods and HF have them. */
bool char_is_space(uint32_t c);
bool char_is_numeric(uint32_t c);
bool char_is_punct(uint32_t c);
bool char_is_word(uint32_t c);

/* ---- tokenizer_regex.c ------------------------------------------------------------------------------------------- */
/* Compiles an Oniguruma pattern as Hugging Face writes them. literal patterns never come here. */
struct regex *regex_new(struct str pattern, struct err *err);
void regex_free(struct regex *re);
struct regex_scratch *regex_scratch_new(const struct regex *re);
void regex_scratch_free(struct regex_scratch *s);
/* First match at or after `from`: 1 found, 0 none, -1 gave up (limits, err set). Text is valid UTF-8. */
int regex_find(const struct regex *re, struct regex_scratch *s, struct str text, size_t from, size_t *start, size_t *end,
               struct err *err);

/* ---- encoding ---------------------------------------------------------------------------------------------------- */
struct bpe_node {
    int32_t id, prev, next;
};
struct bpe_heap_item {
    uint32_t rank;
    uint32_t pos;
    int32_t merged;
};
/* The least rank first, of equal ranks the leftmost (tokenizer_bpe.c). The caller has made room. */
void heap_push(struct bpe_heap_item *heap, size_t *n, struct bpe_heap_item item);
struct bpe_heap_item heap_pop(struct bpe_heap_item *heap, size_t *n);

/* One call of tokenizer_encode: its scratch memory. */
struct encode {
    const struct tokenizer *t;
    unsigned flags;
    const struct text_spans *own; /* where special tokens count; NULL: everywhere */
    struct str text;
    struct token_list *out;
    size_t n_total; /* ids that the text gives, also those that found no room */
    struct err *err;
    struct buf clean, norm_a, norm_b;
    struct buf step[TOKENIZER_STEPS_MAX], step_word[TOKENIZER_STEPS_MAX];
    struct regex_scratch *pre_scratch[TOKENIZER_STEPS_MAX];
    struct regex_scratch *norm_scratch[TOKENIZER_STEPS_MAX];
    struct bpe_node *nodes;
    size_t cap_nodes;
    struct bpe_heap_item *heap;
    size_t cap_heap;
    void *lattice;
    size_t cap_lattice;
};

/* A piece of normalized text; `zero`: how many of its first bytes come from the very first character of the input
 * (Metaspace's "first" asks for that). */
struct piece {
    struct str s;
    size_t zero;
};

bool encode_emit(struct encode *e, int32_t id);
/* Grows *array to n elements of `size` bytes; contents are not kept. */
bool encode_grow(struct encode *e, void **array, size_t *cap, size_t n, size_t size);

/* tokenizer_norm.c: runs all normalizers; the result is in one of e's buffers or `p` itself. */
bool norm_run(struct encode *e, struct piece p, struct piece *result);
/* tokenizer_pre.c: splits and gives every word to the model. */
bool pre_run(struct encode *e, struct piece p);
/* A word through the model (tokenizer_encode.c), and the models. */
bool word_run(struct encode *e, struct str word);
bool bpe_word(struct encode *e, struct str word);
bool spm_bpe_word(struct encode *e, struct str word);
bool unigram_word(struct encode *e, struct str word);
bool wordpiece_word(struct encode *e, struct str word);
bool wordlevel_word(struct encode *e, struct str word);
/* First occurrence of a pattern at or after `from`: 1, 0, -1 (err set). */
int pattern_find(const struct pattern *p, struct regex_scratch **scratch, struct str text, size_t from, size_t *start,
                 size_t *end, struct err *err);

/* ---- builders of the usual pipelines, used by several loaders ------------------------------------------------------ */
extern const struct str PATTERN_GPT2, PATTERN_QWEN2;
bool tokenizer_pre_byte_level(struct tokenizer *t, int prefix_space, int use_regex, struct err *err);
bool tokenizer_pre_split(struct tokenizer *t, struct str pattern, struct err *err);
/* Reads the parts of a tokenizer.json (tokenizer_parts.c). `what` names the file. */
bool parts_normalizer(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err);
bool parts_pre_tokenizer(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err);
bool parts_post_processor(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err);
bool parts_decoder(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err);
bool charsmap_open(struct tokenizer *t, struct str blob, struct charsmap *out, struct err *err);

/* tokenizer_json.c */
struct tokenizer *tokenizer_from_json(const struct tokenizer_files *files, struct err *err);
/* tokenizer_legacy.c: vocab.json + merges.txt. */
struct tokenizer *tokenizer_from_vocab(const struct tokenizer_files *files, struct err *err);
/* tokenizer_spm.c: SentencePiece's tokenizer.model. */
struct tokenizer *tokenizer_from_spm(const struct tokenizer_files *files, struct err *err);

/* A SentencePiece vocabulary, from tokenizer.model or from GGUF. Views; arrays of n. */
enum spm_type { SPM_NORMAL = 1, SPM_UNKNOWN, SPM_CONTROL, SPM_USER, SPM_UNUSED, SPM_BYTE };
struct spm_source {
    const char *file; /* for messages */
    bool unigram;
    size_t n;
    const struct str *pieces;
    const float *scores;
    const int32_t *types; /* enum spm_type */
    bool byte_fallback;
    struct spm_norm norm;
    struct str charsmap;
};
/* Everything but names and post-processor; before tokenizer_finish. */
struct tokenizer *spm_build(const struct spm_source *source, struct err *err);
/* tokenizer_config.c: names of special tokens, added tokens, clean_up_tokenization_spaces; the parsed configuration
 * (NULL when there is none) stays with the caller. Before tokenizer_finish. */
bool config_parse(const struct tokenizer_files *files, json_t **config, struct err *err);
bool config_apply(struct tokenizer *t, const struct tokenizer_files *files, const json_t *config, struct err *err);
/* One id in front of or behind every text, by the token's name ("bos_token"); nothing when the model has none. */
bool tokenizer_affix(struct tokenizer *t, const char *name, int after, struct err *err);
/* The text of {"text": id}: number of ids (largest + 1; 0: err set), and the tokens themselves, with their string table. */
size_t vocab_ids(struct str vocab, const char *file, struct err *err);
bool vocab_read(struct tokenizer *t, struct str vocab, const char *file, struct err *err);
/* "a b": cut at the first space that is not the first character. */
bool merge_parts(struct str line, struct str *left, struct str *right);
json_t *json_parse_text(struct str text, const char *file, struct err *err);
/* Member `key` as a view; `fallback` when absent or null. */
struct str json_view(const json_t *object, const char *key, struct str fallback);
/* -1 absent, else 0 or 1. */
int json_flag(const json_t *object, const char *key, int fallback);

#endif
