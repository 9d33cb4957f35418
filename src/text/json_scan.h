/* JSON read in place, one value after the other: a vocabulary is 300,000 short strings, and as a tree of objects they take
 * several times as long and ten times the memory. Reads what jansson reads; it is stricter nowhere but in numbers, of which
 * only integers are read.
 *
 * After anything that is not what was asked for `failed` stays set and everything reads as the end. One thread. */
#ifndef INFERD_TEXT_JSON_SCAN_H
#define INFERD_TEXT_JSON_SCAN_H

#include "base/buf.h"

struct json_scan {
    const char *at, *end;
    bool failed;
    bool first;         /* nothing of the list that was entered last has been read */
    struct buf text[2]; /* of strings with escapes, in turn */
    unsigned turn;
};

/* string_bytes_max: of a string with escapes; a longer one is a failure. The text stays the caller's. */
void json_scan_init(struct json_scan *s, struct str text, size_t string_bytes_max);
void json_scan_release(struct json_scan *s);

/* Into an object ('{') or a list ('['). */
void json_scan_enter(struct json_scan *s, char open);
/* In front of each member of what was entered and, behind the last, out of it: whether there is one more. close: '}', ']'. */
bool json_scan_more(struct json_scan *s, char close);
/* A string, valid UTF-8; good until the next but one is read. */
struct str json_scan_string(struct json_scan *s);
/* A member's name and its colon; the same holds. */
struct str json_scan_name(struct json_scan *s);
/* An integer; one of more than 18 digits gives the limit of int64_t. Any other value is passed by and gives -1. */
int64_t json_scan_integer(struct json_scan *s);
/* A member's name and its colon, passed by without a look inside; returns its text with the quotes. */
struct str json_scan_skip_name(struct json_scan *s);
/* Passes a value by without a look inside; returns its text. */
struct str json_scan_skip(struct json_scan *s);
/* The first character of the value to come; 0 at the end. */
char json_scan_peek(struct json_scan *s);
/* Nothing but white space is left, and nothing failed. */
bool json_scan_ended(struct json_scan *s);

#endif
