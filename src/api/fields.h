/* Request fields as tables: one row a field, one walk over a JSON object that fills a struct or refuses by name.
 *
 * Every message names the field, the value and what is allowed (both ends of a range); unknown names are refused with
 * the nearest known one. A JSON null counts as absent. Pure functions, any thread.
 */
#ifndef INFERD_API_FIELDS_H
#define INFERD_API_FIELDS_H

#include "base/buf.h"
#include "base/err.h"

#include <jansson.h>

enum field_kind {
    FIELD_STRING, /* struct str (borrowed from the JSON) */
    FIELD_BOOL,   /* int 0/1 */
    FIELD_INT,    /* int64_t; min..max */
    FIELD_NUMBER, /* double; min..max */
    FIELD_ARRAY,  /* json_t * (borrowed) */
    FIELD_OBJECT, /* json_t * (borrowed) */
    FIELD_ANY,    /* json_t * (borrowed) */
    FIELD_CUSTOM, /* parse() */
    FIELD_IGNORE, /* taken, no meaning here (`user`, `metadata`) */
    FIELD_REFUSE, /* known in the dialect, not done here: 400 naming it, unless it has its neutral value */
};

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset;                                                     /* of the value in the target struct */
    double min, max;                                                   /* numbers */
    bool (*parse)(void *target, const json_t *value, struct err *err); /* FIELD_CUSTOM */
    const char *neutral; /* FIELD_REFUSE: JSON text of a value that asks for nothing ("false", "1", "[]"), or NULL */
};

/* Walks `object` by the two tables (either may be NULL; each ends with a row without name). `what` names the object in
 * messages ("request", "options"). */
bool fields_parse(const json_t *object, const char *what, const struct field *table, const struct field *more, void *target,
                  struct err *err);

/* JSON text of a value, shortened to fit a message. `out` has room for FIELD_TEXT_BYTES. */
#define FIELD_TEXT_BYTES 96
const char *field_text(const json_t *value, char *out);

#endif
