/* Hashes that name blobs: LFS files by their sha256, files that git holds itself by git's sha1 of "blob <size>\0" and the
 * bytes. Any other etag (a mirror's own) can be held against nothing but the size. */
#include "hub/impl.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

struct digest {
    EVP_MD_CTX *ctx;
};

enum digest_kind digest_kind_of(const char *etag, const char *sha256)
{
    if (hub_is_sha256(sha256) || hub_is_sha256(etag))
        return DIGEST_SHA256;
    return hub_is_commit(etag) ? DIGEST_GIT_SHA1 : DIGEST_NONE;
}

static bool failed(struct err *err)
{
    return err_set(err, ERR_INTERNAL, "the crypto library cannot hash (is SHA-1 or SHA-256 switched off in its "
                   "configuration?)");
}

struct digest *digest_new(enum digest_kind kind, uint64_t size, struct err *err)
{
    struct digest *d = calloc(1, sizeof *d);
    if (!d || !(d->ctx = EVP_MD_CTX_new())) {
        free(d);
        err_set(err, ERR_MEMORY, "no memory for a hash");
        return NULL;
    }
    char head[48];
    int n = snprintf(head, sizeof head, "blob %llu", (unsigned long long)size);
    if (EVP_DigestInit_ex(d->ctx, kind == DIGEST_GIT_SHA1 ? EVP_sha1() : EVP_sha256(), NULL) != 1 ||
        (kind == DIGEST_GIT_SHA1 && EVP_DigestUpdate(d->ctx, head, (size_t)n + 1) != 1)) {
        digest_free(d);
        failed(err);
        return NULL;
    }
    return d;
}

bool digest_add(struct digest *d, const void *bytes, size_t len, struct err *err)
{
    return EVP_DigestUpdate(d->ctx, bytes, len) == 1 || failed(err);
}

bool digest_end(struct digest *d, char out[65], struct err *err)
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (EVP_DigestFinal_ex(d->ctx, raw, &n) != 1 || n > 32)
        return failed(err);
    for (unsigned i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", raw[i]);
    return true;
}

void digest_free(struct digest *d)
{
    if (!d)
        return;
    EVP_MD_CTX_free(d->ctx);
    free(d);
}
