/* The view itself: mapping, the list of tensors and its index, small files of a folder, and which of the two formats a
 * path holds. The formats are in safetensors.c and gguf.c. Memory: everything belongs to struct checkpoint. */
#include "model/checkpoint_impl.h"

#include "base/mapping.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool out_of_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, "no memory left for the list of tensors of a checkpoint");
}

const char *checkpoint_show(struct str s, char out[CHECKPOINT_SHOW_BYTES])
{
    size_t n = s.len < CHECKPOINT_SHOW_BYTES - 4 ? s.len : CHECKPOINT_SHOW_BYTES - 4;
    for (size_t i = 0; i < n; i++) {
        unsigned char b = (unsigned char)s.ptr[i];
        out[i] = b >= 0x20 && b < 0x7f ? (char)b : '?';
    }
    memcpy(out + n, n < s.len ? "..." : "", n < s.len ? 4 : 1);
    return out;
}

bool checkpoint_plain_name(struct str name)
{
    return name.len > 0 && name.len < 256 && name.ptr[0] != '.' && !memchr(name.ptr, '/', name.len) &&
           !memchr(name.ptr, 0, name.len);
}

char *checkpoint_path(const char *dir, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static bool five_digits(const char *p, unsigned *out)
{
    unsigned v = 0;
    for (int i = 0; i < 5; i++) {
        if (p[i] < '0' || p[i] > '9')
            return false;
        v = v * 10 + (unsigned)(p[i] - '0');
    }
    *out = v;
    return true;
}

bool checkpoint_split_name(struct str name, struct str suffix, size_t *stem_len, unsigned *number, unsigned *count)
{
    const size_t tail = sizeof("-00001-of-00002") - 1;
    if (!str_has_ending(name, suffix) || name.len <= suffix.len + tail)
        return false;
    const char *p = name.ptr + name.len - suffix.len - tail;
    if (p[0] != '-' || memcmp(p + 6, "-of-", 4) != 0 || !five_digits(p + 1, number) || !five_digits(p + 10, count))
        return false;
    *stem_len = name.len - suffix.len - tail;
    return *number >= 1 && *count >= 1 && *number <= *count;
}

/* The last two parts of a path tell an operator which file it is without telling a client where the server keeps it. */
static const char *label_of(const char *path)
{
    const char *p = strrchr(path, '/');
    while (p && p > path) {
        if (*--p == '/')
            return p + 1;
    }
    return path[0] == '/' ? path + 1 : path;
}

static struct checkpoint_mapping *new_file(struct checkpoint *c, const char *path, struct err *err)
{
    if (c->n_files == c->cap_files) {
        size_t cap = c->cap_files ? 2 * c->cap_files : 4;
        struct checkpoint_mapping *files = realloc(c->files, cap * sizeof *files);
        if (!files)
            return out_of_memory(err), NULL;
        c->files = files;
        c->cap_files = cap;
    }
    struct checkpoint_mapping *f = &c->files[c->n_files];
    *f = (struct checkpoint_mapping){.path = strdup(path)};
    if (!f->path)
        return out_of_memory(err), NULL;
    f->label = label_of(f->path);
    c->n_files++;
    return f;
}

/* Opens a regular file; never blocks on a pipe or a device. */
static int open_regular(const char *path, struct stat *st, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        enum err_code code = errno == ENOENT || errno == ENOTDIR ? ERR_MODEL_NOT_FOUND : ERR_IO;
        err_set(err, code, "cannot open %s: %s", label_of(path), strerror(errno));
        return -1;
    }
    if (fstat(fd, st) != 0 || !S_ISREG(st->st_mode)) {
        close(fd);
        err_set(err, ERR_MODEL_DAMAGED, "%s is not a regular file", label_of(path));
        return -1;
    }
    return fd;
}

static int64_t mtime_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

bool checkpoint_map(struct checkpoint *c, const char *path, struct err *err)
{
    struct stat st;
    int fd = open_regular(path, &st, err);
    if (fd < 0)
        return false;
    size_t len = (size_t)st.st_size;
    struct checkpoint_mapping *f = new_file(c, path, err);
    if (!f) {
        close(fd);
        return false;
    }
    if (len == 0) {
        close(fd);
        return err_set(err, ERR_MODEL_DAMAGED, "%s is empty (0 bytes): fetch it again", f->label);
    }
    const void *p = mapping_open(fd, len);
    int why = errno;
    close(fd);
    if (!p)
        return err_set(err, ERR_IO, "cannot map %s (%zu bytes): %s", f->label, len, strerror(why));
    f->bytes = p;
    f->len = len;
    f->mtime_ns = mtime_ns(&st);
    f->device = st.st_dev;
    f->inode = st.st_ino;
    f->mapped = true;
    static const char lfs[] = "version https://git-lfs";
    if (len >= sizeof lfs - 1 && memcmp(p, lfs, sizeof lfs - 1) == 0)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "%s is a Git LFS pointer of %zu bytes, not the weights: run `git lfs pull` in its folder or fetch "
                       "the file again",
                       f->label, len);
    return true;
}

bool checkpoint_elements(const size_t *dims, unsigned n_dims, size_t *out)
{
    size_t n = 1;
    for (unsigned i = 0; i < n_dims; i++) {
        if (__builtin_mul_overflow(n, dims[i], &n))
            return false;
    }
    *out = n;
    return true;
}

static bool append_tensor(struct checkpoint *c, const struct tensor *t, struct err *err)
{
    if (c->n_tensors == c->cap_tensors) {
        size_t cap = c->cap_tensors ? 2 * c->cap_tensors : 64;
        struct tensor *tensors = realloc(c->tensors, cap * sizeof *tensors);
        if (!tensors)
            return out_of_memory(err);
        c->tensors = tensors;
        c->cap_tensors = cap;
    }
    if (!map_set(&c->tensor_by_name, t->name, c->n_tensors))
        return out_of_memory(err);
    c->tensors[c->n_tensors++] = *t;
    return true;
}

bool checkpoint_add_tensor(struct checkpoint *c, struct tensor *t, size_t file, struct err *err)
{
    char shown[CHECKPOINT_SHOW_BYTES];
    uint64_t other;
    bool ok = true;
    t->file = c->files[file].label;
    if (c->n_tensors >= CHECKPOINT_TENSORS_MAX)
        ok = err_set(err, ERR_MODEL_DAMAGED, "%s: more than %zu tensors", t->file, CHECKPOINT_TENSORS_MAX);
    else if (map_get(&c->tensor_by_name, t->name, &other))
        ok = err_set(err, ERR_MODEL_DAMAGED, "%s: tensor '%s' is there twice (first in %s)", t->file,
                     checkpoint_show(t->name, shown), c->tensors[other].file);
    else
        ok = append_tensor(c, t, err);
    if (!ok) {
        if (c->kind == CHECKPOINT_HF)
            free((char *)t->name.ptr);
        return false;
    }
    size_t elements = 0;
    checkpoint_elements(t->dims, t->n_dims, &elements);
    c->n_parameters += elements;
    return true;
}

static int by_address(const void *a, const void *b)
{
    const struct tensor *x = *(const struct tensor *const *)a, *y = *(const struct tensor *const *)b;
    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

bool checkpoint_check_ranges(const struct checkpoint *c, size_t first, size_t file, const unsigned char *begin,
                             enum checkpoint_gaps gaps, struct err *err)
{
    size_t n = c->n_tensors - first;
    const struct checkpoint_mapping *f = &c->files[file];
    const struct tensor **sorted = malloc((n ? n : 1) * sizeof *sorted);
    if (!sorted)
        return out_of_memory(err);
    for (size_t i = 0; i < n; i++)
        sorted[i] = &c->tensors[first + i];
    qsort(sorted, n, sizeof *sorted, by_address);
    char a[CHECKPOINT_SHOW_BYTES], b[CHECKPOINT_SHOW_BYTES];
    const unsigned char *at = begin;
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        const unsigned char *data = sorted[i]->data;
        if (sorted[i]->bytes == 0)
            continue;
        if (data < at)
            ok = err_set(err, ERR_MODEL_DAMAGED, "%s: tensors '%s' and '%s' overlap by %zu bytes at byte %zu", f->label,
                         checkpoint_show(i ? sorted[i - 1]->name : STR(""), a), checkpoint_show(sorted[i]->name, b),
                         (size_t)(at - data), (size_t)(data - f->bytes));
        else if (data > at && gaps == CHECKPOINT_GAPS_REFUSED)
            ok = err_set(err, ERR_MODEL_DAMAGED, "%s: %zu bytes before tensor '%s' (at byte %zu) belong to no tensor", f->label,
                         (size_t)(data - at), checkpoint_show(sorted[i]->name, b), (size_t)(data - f->bytes));
        at = data + sorted[i]->bytes;
    }
    if (ok && gaps == CHECKPOINT_GAPS_REFUSED && at != f->bytes + f->len)
        ok = err_set(err, ERR_MODEL_DAMAGED, "%s: %zu bytes behind the last tensor belong to no tensor", f->label,
                     (size_t)(f->bytes + f->len - at));
    free(sorted);
    return ok;
}

static struct checkpoint *checkpoint_new(enum checkpoint_kind kind, struct err *err)
{
    struct checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return out_of_memory(err), NULL;
    c->kind = kind;
    pthread_mutex_init(&c->texts_lock, NULL);
    map_init(&c->tensor_by_name);
    map_init(&c->entry_by_key);
    return c;
}

void checkpoint_close(struct checkpoint *c)
{
    if (!c)
        return;
    for (size_t i = 0; c->kind == CHECKPOINT_HF && i < c->n_tensors; i++)
        free((char *)c->tensors[i].name.ptr);
    for (size_t i = 0; i < c->n_files; i++) {
        if (c->files[i].mapped)
            mapping_close(c->files[i].bytes, c->files[i].len);
        free(c->files[i].header);
        free(c->files[i].path);
    }
    for (struct checkpoint_text *t = c->texts, *next; t; t = next) {
        next = t->next;
        free(t->name);
        free(t->bytes);
        free(t);
    }
    pthread_mutex_destroy(&c->texts_lock);
    map_release(&c->tensor_by_name);
    map_release(&c->entry_by_key);
    free(c->tensors);
    free(c->entries);
    free(c->files);
    free(c->dir);
    free(c);
}

/* What a folder holds, as far as opening it needs to know. */
struct folder {
    size_t n_safetensors;
    size_t n_pickles; /* pytorch_model.bin and kin */
    size_t n_gguf;    /* models: the parts of a split one count once */
    char gguf[256], other_gguf[256];
};

static bool is_pickle(struct str name)
{
    return str_has_suffix(name, STR(".pth")) || str_has_suffix(name, STR(".pt")) ||
           (str_has_prefix(name, STR("pytorch_model")) && str_has_suffix(name, STR(".bin")));
}

/* Of a split model the first part that is there stands for it. Projectors of multimodal models are not models. */
static void note_gguf(struct folder *f, struct str name)
{
    size_t stem = name.len, seen_stem = 0;
    unsigned number = 0, count = 0, seen_number = 0, seen_count = 0;
    if (name.len >= sizeof f->gguf || str_has_prefix(name, STR("mmproj")))
        return;
    bool split = checkpoint_split_name(name, STR(".gguf"), &stem, &number, &count);
    struct str seen = str_from(f->gguf);
    if (split && f->n_gguf && checkpoint_split_name(seen, STR(".gguf"), &seen_stem, &seen_number, &seen_count) &&
        seen_count == count && str_equal((struct str){name.ptr, stem}, (struct str){seen.ptr, seen_stem})) {
        if (number < seen_number)
            memcpy(f->gguf, name.ptr, name.len + 1);
        return;
    }
    memcpy(f->n_gguf ? f->other_gguf : f->gguf, name.ptr, name.len + 1);
    f->n_gguf++;
}

static bool look_into(const char *path, struct folder *f, struct err *err)
{
    *f = (struct folder){0};
    DIR *d = opendir(path);
    if (!d)
        return err_set(err, ERR_IO, "cannot read the folder %s: %s", label_of(path), strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        struct str name = str_from(e->d_name);
        if (!checkpoint_plain_name(name))
            continue;
        f->n_safetensors += str_has_ending(name, STR(".safetensors"));
        f->n_pickles += is_pickle(name);
        if (str_has_ending(name, STR(".gguf")))
            note_gguf(f, name);
    }
    closedir(d);
    return true;
}

static bool has_file(const char *dir, const char *name)
{
    char *path = checkpoint_path(dir, name);
    bool there = path && access(path, F_OK) == 0;
    free(path);
    return there;
}

static bool refuse_folder(const char *path, const struct folder *f, struct err *err)
{
    const char *label = label_of(path);
    if (f->n_pickles)
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "%s holds its weights only as pytorch_model.bin (pickle), which can run code when read: use a "
                       "revision with safetensors, or convert it: python -c \"from transformers import "
                       "AutoModelForCausalLM as M; M.from_pretrained('FOLDER').save_pretrained('FOLDER', "
                       "safe_serialization=True)\"",
                       label);
    if (f->n_safetensors)
        return err_set(err, ERR_MODEL_DAMAGED, "%s has *.safetensors but no config.json: fetch config.json into it", label);
    return err_set(err, ERR_MODEL_NOT_FOUND, "%s holds no model: neither config.json with *.safetensors nor a *.gguf file",
                   label);
}

static struct checkpoint *open_folder(const char *path, struct err *err)
{
    struct folder f;
    if (!look_into(path, &f, err))
        return NULL;
    bool hf = f.n_safetensors && has_file(path, "config.json");
    if (!hf && !f.n_gguf)
        return refuse_folder(path, &f, err), NULL;
    if (!hf && f.n_gguf > 1) {
        err_set(err, ERR_MODEL_UNSUPPORTED,
                "%s holds %zu GGUF models ('%s', '%s'): name the one file to open, as in %s/%s, or move the others out of "
                "the folder",
                label_of(path), f.n_gguf, f.gguf, f.other_gguf, strrchr(path, '/') ? strrchr(path, '/') + 1 : path, f.gguf);
        return NULL;
    }
    struct checkpoint *c = checkpoint_new(hf ? CHECKPOINT_HF : CHECKPOINT_GGUF, err);
    if (!c)
        return NULL;
    char *name = hf ? strdup(path) : checkpoint_path(path, f.gguf);
    bool ok = name || out_of_memory(err);
    if (hf) {
        c->dir = name;
        ok = ok && safetensors_open(c, err);
    } else {
        ok = ok && gguf_open(c, name, err);
        free(name);
    }
    if (!ok) {
        checkpoint_close(c);
        return NULL;
    }
    return c;
}

struct checkpoint *checkpoint_open(const char *path, struct err *err)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        enum err_code code = errno == ENOENT || errno == ENOTDIR ? ERR_MODEL_NOT_FOUND : ERR_IO;
        err_set(err, code, "cannot open the model %s: %s", label_of(path), strerror(errno));
        return NULL;
    }
    if (S_ISDIR(st.st_mode))
        return open_folder(path, err);
    struct str s = str_from(path);
    if (str_has_ending(s, STR(".safetensors")) || is_pickle(s)) {
        err_set(err, ERR_MODEL_UNSUPPORTED, "%s is a file of weights: give its folder, which must also hold config.json",
                label_of(path));
        return NULL;
    }
    struct checkpoint *c = checkpoint_new(CHECKPOINT_GGUF, err);
    if (c && !gguf_open(c, path, err)) {
        checkpoint_close(c);
        return NULL;
    }
    return c;
}

struct checkpoint *checkpoint_open_shape(const char *dir, struct err *err)
{
    if (!has_file(dir, "config.json")) {
        err_set(err, ERR_MODEL_NOT_FOUND, "%s has no config.json to plan with", label_of(dir));
        return NULL;
    }
    struct checkpoint *c = checkpoint_new(CHECKPOINT_HF, err);
    if (c && !(c->dir = strdup(dir))) {
        out_of_memory(err);
        checkpoint_close(c);
        return NULL;
    }
    if (c)
        c->is_shape = true;
    return c;
}

bool checkpoint_is_shape(const struct checkpoint *c)
{
    return c->is_shape;
}

struct checkpoint *checkpoint_open_memory(enum checkpoint_kind kind, const void *bytes, size_t len, struct err *err)
{
    struct checkpoint *c = checkpoint_new(kind, err);
    if (!c)
        return NULL;
    struct checkpoint_mapping *f = new_file(c, "memory", err);
    if (f) {
        f->bytes = bytes;
        f->len = len;
    }
    if (!f || !(kind == CHECKPOINT_HF ? safetensors_parse(c, 0, NULL, err) : gguf_parse(c, 0, err))) {
        checkpoint_close(c);
        return NULL;
    }
    return c;
}

enum checkpoint_kind checkpoint_kind(const struct checkpoint *c)
{
    return c->kind;
}

size_t checkpoint_n_tensors(const struct checkpoint *c)
{
    return c->n_tensors;
}

const struct tensor *checkpoint_tensor_at(const struct checkpoint *c, size_t index)
{
    return index < c->n_tensors ? &c->tensors[index] : NULL;
}

const struct tensor *checkpoint_tensor(const struct checkpoint *c, struct str name)
{
    uint64_t index;
    return map_get(&c->tensor_by_name, name, &index) ? &c->tensors[index] : NULL;
}

uint64_t checkpoint_n_parameters(const struct checkpoint *c)
{
    return c->n_parameters;
}

bool checkpoint_is_unchanged(const struct checkpoint *c, struct err *err)
{
    for (size_t i = 0; i < c->n_files; i++) {
        const struct checkpoint_mapping *f = &c->files[i];
        struct stat st;
        if (f->mapped && !mapping_is_whole(f->bytes))
            return err_set(err, ERR_IO,
                           "%s was cut while it was read, or its disk cannot be read: load the model again once the file is "
                           "whole",
                           f->label);
        if (f->mapped && stat(f->path, &st) == 0 && st.st_dev == f->device && st.st_ino == f->inode &&
            ((size_t)st.st_size != f->len || mtime_ns(&st) != f->mtime_ns))
            return err_set(err, ERR_IO,
                           "%s was changed while it was read: load the model again once it is whole (files that are replaced "
                           "by rename may be changed at any time)",
                           f->label);
    }
    return true;
}

void checkpoint_forget(const struct checkpoint *c, const struct tensor *t)
{
    checkpoint_forget_part(c, t, 0, t->bytes);
}

void checkpoint_forget_part(const struct checkpoint *c, const struct tensor *t, size_t at, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)t->data + at) & ~(page - 1);
    uintptr_t end = ((uintptr_t)t->data + at + bytes + page - 1) & ~(page - 1);
    for (size_t i = 0; bytes && i < c->n_files; i++) {
        uintptr_t file = (uintptr_t)c->files[i].bytes;
        /* Neighbours on a shared page are read from the file again: the mapping is never written. */
        if (c->files[i].mapped && (uintptr_t)t->data >= file && (uintptr_t)t->data < file + c->files[i].len)
            madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}

static char *read_whole(int fd, size_t len)
{
    char *bytes = malloc(len + 1);
    size_t have = 0;
    while (bytes && have < len) {
        ssize_t n = read(fd, bytes + have, len - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            free(bytes);
            return NULL;
        }
        have += (size_t)n;
    }
    if (bytes)
        bytes[len] = 0;
    return bytes;
}

/* With texts_lock. */
static bool read_text(struct checkpoint *c, const char *name, const char *path, struct str *out, struct err *err)
{
    struct stat st;
    struct err why = {0};
    int fd = open_regular(path, &st, &why);
    if (fd < 0 && why.code == ERR_MODEL_NOT_FOUND)
        return true;
    if (fd < 0)
        return err_set(err, why.code, "%s", why.text);
    size_t len = (size_t)st.st_size;
    if (len > CHECKPOINT_FILE_BYTES_MAX) {
        close(fd);
        return err_set(err, ERR_MODEL_DAMAGED, "%s has %zu bytes, more than the %zu that such a file may have", label_of(path),
                       len, CHECKPOINT_FILE_BYTES_MAX);
    }
    char *bytes = read_whole(fd, len);
    close(fd);
    struct checkpoint_text *t = malloc(sizeof *t);
    char *copy = strdup(name);
    if (!bytes || !t || !copy) {
        free(bytes);
        free(t);
        free(copy);
        return err_set(err, ERR_IO, "cannot read %s (%zu bytes)", label_of(path), len);
    }
    *t = (struct checkpoint_text){copy, bytes, len, c->texts};
    c->texts = t;
    *out = (struct str){bytes, len};
    return true;
}

bool checkpoint_file(struct checkpoint *c, const char *name, struct str *out, struct err *err)
{
    *out = (struct str){"", 0};
    if (c->kind != CHECKPOINT_HF || !c->dir)
        return true;
    if (!checkpoint_plain_name(str_from(name))) {
        char shown[CHECKPOINT_SHOW_BYTES];
        return err_set(err, ERR_MODEL_DAMAGED, "'%s' is not a plain file name", checkpoint_show(str_from(name), shown));
    }
    char *path = checkpoint_path(c->dir, name);
    if (!path)
        return out_of_memory(err);
    pthread_mutex_lock(&c->texts_lock);
    const struct checkpoint_text *t = c->texts;
    while (t && strcmp(t->name, name) != 0)
        t = t->next;
    if (t)
        *out = (struct str){t->bytes, t->len};
    bool ok = t || read_text(c, name, path, out, err);
    pthread_mutex_unlock(&c->texts_lock);
    free(path);
    return ok;
}
