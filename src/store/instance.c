/* The name of this process among others; see store.h. */
#include "store/store.h"

#include "base/rand.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define TAG_BYTES      16 /* hexadecimal */
#define PATH_BYTES_MAX 4096

static void make_tag(char out[TAG_BYTES + 1])
{
    snprintf(out, TAG_BYTES + 1, "%016llx", (unsigned long long)rand_system_u64());
}

static bool is_tag(const char *text, ssize_t n)
{
    for (ssize_t i = 0; i < n; i++)
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
            return false;
    return n == TAG_BYTES;
}

/* The tag that the file keeps, a new one where it keeps none. */
static bool keep_tag(int fd, const char *path, char tag[TAG_BYTES + 1], struct err *err)
{
    ssize_t n = pread(fd, tag, TAG_BYTES, 0);
    if (is_tag(tag, n)) {
        tag[TAG_BYTES] = 0;
        return true;
    }
    make_tag(tag);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, tag, TAG_BYTES, 0) != TAG_BYTES || fsync(fd) != 0)
        return err_set(err, ERR_IO, "Cannot write '%s': %m.", path);
    return true;
}

bool store_instance_open(struct store_instance *out, const char *data_dir, struct err *err)
{
    char path[PATH_BYTES_MAX], host[64] = "", tag[TAG_BYTES + 1];
    *out = (struct store_instance){.fd = -1};
    gethostname(host, sizeof host - 1);
    snprintf(path, sizeof path, "%s/instance", data_dir);
    if (mkdir(data_dir, 0777) != 0 && errno != EEXIST)
        return err_set(err, ERR_IO, "Cannot make the folder '%s' (--data-dir): %m.", data_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return err_set(err, ERR_IO, "Cannot open '%s' for writing: %m. Give another --data-dir, or the right to write there.",
                       path);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        out->fd = fd;
        if (!keep_tag(fd, path, tag, err)) {
            store_instance_close(out);
            return false;
        }
    } else {
        close(fd); /* another process has this folder, and its name with it */
        make_tag(tag);
    }
    snprintf(out->name, sizeof out->name, "%s-%s", host[0] ? host : "host", tag);
    return true;
}

void store_instance_close(struct store_instance *i)
{
    if (i->fd >= 0)
        close(i->fd);
    i->fd = -1;
}
