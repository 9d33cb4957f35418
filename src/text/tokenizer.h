/* Tokenizers: text <-> token ids, equal to Hugging Face `tokenizers` on any input.
 *
 * A tokenizer is made from the files that a model was published with (tokenizer.json; tokenizer.model of
 * SentencePiece; vocab.json + merges.txt) or from the vocabulary that a GGUF file carries. It is immutable once made:
 * any thread may encode and decode at the same time; scratch memory belongs to the call.
 *
 * Memory: model lifetime; tokenizer_free. Errors: ERR_MODEL_DAMAGED / ERR_MODEL_UNSUPPORTED name the file, the part
 * and the value.
 */
#ifndef INFERD_TEXT_TOKENIZER_H
#define INFERD_TEXT_TOKENIZER_H

#include "base/buf.h"
#include "base/err.h"
#include "text/spans.h"

struct tokenizer;

/* What was published, as bytes that the caller keeps alive during the call. Absent files have len 0. */
struct tokenizer_files {
    struct str tokenizer_json;
    struct str tokenizer_model; /* SentencePiece protobuf */
    struct str vocab_json;
    struct str merges_txt;
    struct str tokenizer_config; /* tokenizer_config.json: add_bos_token, bos_token, eos_token, added_tokens_decoder, ... */
    struct str special_tokens_map;
    struct str added_tokens; /* added_tokens.json */
    struct str model_type;   /* of config.json: decides the pre-tokenizer where only vocab.json + merges.txt exist */
};

/* The vocabulary of a GGUF file (keys tokenizer.ggml.*), as views that the caller keeps alive during the call. */
struct tokenizer_gguf {
    struct str model; /* "gpt2", "llama" (SentencePiece BPE), "t5" (unigram) */
    struct str pre;   /* "smollm", "qwen2", "llama-bpe", "gpt-2", ...; "" when absent */
    size_t n_tokens;
    const struct str *tokens;   /* [n_tokens] */
    const float *scores;        /* [n_tokens] or NULL */
    const int32_t *token_types; /* [n_tokens] or NULL: 1 normal 2 unknown 3 control 4 user-defined 5 unused 6 byte */
    size_t n_merges;
    const struct str *merges;   /* [n_merges] "a b" */
    int32_t bos, eos, unk, pad; /* -1: absent */
    int add_bos, add_eos;       /* 1, 0, or -1: absent (the model's usual) */
    int add_space_prefix;       /* the same */
    int remove_extra_whitespaces;
    struct str precompiled_charsmap; /* "t5": SentencePiece's normalizer; len 0 when absent */
};

struct tokenizer *tokenizer_from_files(const struct tokenizer_files *files, struct err *err);
struct tokenizer *tokenizer_from_gguf(const struct tokenizer_gguf *gguf, struct err *err);
void tokenizer_free(struct tokenizer *t);

/* Token ids in a growing array; born with a maximum. Caller: token_list_init / release. */
struct token_list {
    int32_t *ids;
    size_t len, cap, max;
};
void token_list_init(struct token_list *l, size_t ids_max);
void token_list_release(struct token_list *l);
bool token_list_push(struct token_list *l, int32_t id);

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1,   /* run the post-processor: BOS/EOS as the model's configuration says */
    TOKENIZER_PARSE_SPECIAL = 2, /* special tokens written in the text become their ids (as Hugging Face does);
                                    without it their characters are ordinary text and cannot forge a turn */
};

/* Appends the ids of `text` (any bytes; invalid UTF-8 is first replaced by U+FFFD as Python's errors="replace" does)
 * to `out`. False: out of memory or over out->max (ERR_TOO_LARGE with both numbers). Linear or n log n time on any
 * input: no quadratic worst case (a megabyte of one letter must take well under a second). */
bool tokenizer_encode(const struct tokenizer *t, struct str text, unsigned flags, struct token_list *out, struct err *err);

/* The same with TOKENIZER_PARSE_SPECIAL, but only those special tokens are parsed that are within one of `own`; elsewhere their
 * characters are text. ERR_UNSUPPORTED: this tokenizer looks for them in a text that it has changed before. */
bool tokenizer_encode_own(const struct tokenizer *t, struct str text, unsigned flags, const struct text_spans *own,
                          struct token_list *out, struct err *err);

/* Appends the text of `ids` to `out`, as Hugging Face's decode(skip_special_tokens=..., clean_up_tokenization_spaces as
 * the model's configuration says). Ids out of the vocabulary: ERR_INVALID_REQUEST naming the id. */
bool tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids, bool skip_special, struct buf *out,
                      struct err *err);

size_t tokenizer_vocab_size(const struct tokenizer *t); /* largest id + 1 */
/* The raw token ("Ġhello", "▁the", "<|im_end|>") or an empty view for holes. */
struct str tokenizer_token(const struct tokenizer *t, int32_t id);
/* The bytes that one token stands for inside running text (byte fallback resolved, "▁"/"Ġ" resolved); may be part of a
 * UTF-8 character. Written to `out`. Special tokens give their own text. For logprobs' `bytes`. */
bool tokenizer_token_bytes(const struct tokenizer *t, int32_t id, struct buf *out);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
/* Id of an exact raw token, -1 when there is none. */
int32_t tokenizer_id(const struct tokenizer *t, struct str token);
int32_t tokenizer_eos(const struct tokenizer *t); /* -1: none */
/* Whether TOKENIZER_ADD_SPECIAL puts BOS in front. */
bool tokenizer_adds_bos(const struct tokenizer *t);
/* Names for templates: bos_token, eos_token, unk_token, pad_token and other *_token of the configuration; empty when none. */
struct str tokenizer_named(const struct tokenizer *t, const char *name);

/* ---- streaming decode: never splits a character ------------------------------------------------------------------
 * detok_push(ids...) over all tokens, then detok_finish, gives exactly tokenizer_decode of the whole. What detok_push
 * hands out is always valid UTF-8 and never has to be taken back. State belongs to one request, one thread at a time;
 * memory bounded (DETOK_PENDING_MAX tokens are held at most). */
struct detok;
struct detok *detok_new(const struct tokenizer *t, bool skip_special);
void detok_free(struct detok *d);
/* Appends the text that has become certain to `out`. */
bool detok_push(struct detok *d, int32_t id, struct buf *out);
bool detok_finish(struct detok *d, struct buf *out);

#endif
