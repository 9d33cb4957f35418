# inferd: the only build file.
#
#   make            build build/inferd
#   make run        install what is needed, build, fetch the default model, serve it
#   make test       install what is needed, build, run every test that needs no GPU
#   make help       all targets
#
# Variants: V=asan|tsan|debug|fuzz|cov builds into build/$(V).

comma := ,

V ?=
CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
B := build$(if $(V),/$(V))

PKGS    := libmicrohttpd jansson sqlite3 hiredis libcurl libpcre2-8 libutf8proc libcrypto libedit
PKGFLAGS = $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LIBS     = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -lpthread -ldl

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wwrite-strings -Wvla \
        -Wundef -Wformat=2 -Wno-unused-parameter -Wno-format-nonliteral -Wno-psabi
BASE := -std=gnu11 -D_GNU_SOURCE -Isrc -I$(B)/gen -g -fno-omit-frame-pointer -fno-strict-aliasing $(WARN)
OPT  := -O2
LDFLAGS :=
ifeq ($(V),asan)
OPT := -O1 -fno-var-tracking -fsanitize=address,undefined -fno-sanitize-recover=undefined
LDFLAGS := -fsanitize=address,undefined
endif
ifeq ($(V),tsan)
OPT := -O1 -fno-var-tracking -fsanitize=thread
LDFLAGS := -fsanitize=thread
endif
ifeq ($(V),debug)
OPT := -O0
endif
ifeq ($(V),cov)
OPT := -O0 --coverage
LDFLAGS := --coverage
endif
ifeq ($(V),fuzz)
CC := clang
OPT := -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
LDFLAGS := -fsanitize=address,undefined
endif
CFLAGS = $(BASE) $(OPT) $(PKGFLAGS)
Q := $(if $(VERBOSE),,@) # VERBOSE=1 shows the commands
say = $(if $(VERBOSE),,@echo '  $(1)')

# Kernel files: the instruction set is the file's suffix; nothing else gets its flags.
KERNEL     := $(if $(filter asan tsan fuzz,$(V)),-O1,-O3) $(if $(findstring clang,$(CC)),,-fno-tree-pre) -fno-math-errno -fno-trapping-math -ffp-contract=fast
ISA_avx2   := -mavx2 -mfma -mf16c -mbmi2
ISA_avx512 := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
ISA_vnni   := $(ISA_avx512) -mavx512vnni
ISA_amx    := $(ISA_vnni) -mavx512vbmi -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16

SRC  := $(sort $(wildcard src/*/*.c src/backend/cpu/*.c))
OBJ  := $(SRC:%.c=$(B)/%.o)
MAIN := $(B)/src/main.o

.PHONY: all
all: $(B)/inferd

$(B)/inferd: $(MAIN) $(B)/libinferd.a
	$(call say,LINK $@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/libinferd.a: $(OBJ)
	$(call say,AR   $@)
	$(Q)rm -f $@ && ar rcs $@ $^

EXTRA = $(if $(findstring src/backend/cpu/,$<),$(KERNEL) $(ISA_$(lastword $(subst _, ,$(basename $(notdir $<))))))
$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC   $<)
	$(Q)$(CC) $(CFLAGS) $(EXTRA) -MMD -MP -c -o $@ $<

-include $(OBJ:.o=.d) $(MAIN:.o=.d)

# ---- tests ---------------------------------------------------------------------------------------------------------
UNIT      := $(sort $(wildcard tests/unit/*/test_*.c tests/sim/test_*.c tests/ops/test_*.c))
# Its tiles in plain C take the sanitizers' compilers minutes; the same kernels run in the other tests.
UNIT      := $(filter-out $(if $(filter asan tsan fuzz,$(V)),tests/ops/test_linear.c),$(UNIT))
# One thread's arithmetic and text take the thread sanitizer minutes; the end-to-end tests run them on all threads.
UNIT      := $(filter-out $(if $(filter tsan,$(V)),tests/ops/% tests/sim/% tests/unit/text/% tests/unit/model/test_forward.c),$(UNIT))
UNIT_BIN  := $(UNIT:%.c=$(B)/%)
$(UNIT_BIN): $(B)/%: %.c $(B)/libinferd.a
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(CFLAGS) -Itests $(LDFLAGS) -MMD -MP -o $@ $< $(B)/libinferd.a -lcmocka $(LIBS)
-include $(UNIT_BIN:%=%.d)

# The library's allocations go through the tests' own wrappers.
$(B)/tests/unit/engine/test_alloc: LDFLAGS += $(addprefix -Wl$(comma)--wrap=,malloc calloc realloc aligned_alloc free mmap64 \
                                              munmap pthread_create)
$(B)/tests/unit/serve/test_names: LDFLAGS += -Wl$(comma)--wrap=strdup
$(B)/tests/unit/store/test_redis: LDFLAGS += -Wl$(comma)--wrap=clock_wall_ns
$(B)/tests/unit/text/test_tokenizer: LDFLAGS += $(addprefix -Wl$(comma)--wrap=,realloc free)

.PHONY: unit
unit: $(UNIT_BIN)
	@sh tools/run_unit.sh $(UNIT_BIN)

# ---- fuzzing -------------------------------------------------------------------------------------------------------
FUZZ     := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BIN := $(FUZZ:%.c=$(B)/%)
$(FUZZ_BIN): $(B)/%: %.c $(B)/libinferd.a
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -fsanitize=fuzzer -MMD -MP -o $@ $< $(B)/libinferd.a $(LIBS)
-include $(FUZZ_BIN:%=%.d)

.PHONY: fuzz fuzz-targets
fuzz: ## build every fuzz target with clang and sanitizers, run each FUZZ_S seconds (default 10)
	@sh tools/setup.sh build check
	@$(MAKE) --no-print-directory V=fuzz fuzz-targets

fuzz-targets: $(FUZZ_BIN)
	@sh tools/run_fuzz.sh $(FUZZ_BIN)

# ---- what people call -------------------------------------------------------------------------------------------------
MODELS ?= models
DATA   ?= data
ARGS   ?=

.PHONY: run test e2e check help clean
run: ## install what is needed, build, fetch the default model, serve it (ARGS="--port 9000 ...")
	@sh tools/setup.sh build
	@$(MAKE) --no-print-directory all
	@sh tools/fetch_model.sh $(MODELS)
	@exec $(B)/inferd serve --models-dir $(MODELS) --data-dir $(DATA) $(ARGS)

test: ## install what is needed, build, run every test
	@sh tools/setup.sh build test
	@$(MAKE) --no-print-directory all tests
	@sh tools/fetch_model.sh $(MODELS)
	@sh tools/run_tests.sh $(UNIT_BIN)

.PHONY: tests
tests: $(UNIT_BIN)

e2e: all ## the tests that drive the real binary
	@sh tools/run_e2e.sh

# What a server has when it ends goes with its process: a thread that still writes the packed cache is not waited for.
TSAN_OPTIONS := halt_on_error=1:report_thread_leaks=0
.PHONY: asan tsan
asan tsan: ## unit tests and the quick end-to-end tests under the sanitizer
	@$(MAKE) --no-print-directory V=$@ all unit
	@TSAN_OPTIONS=$(TSAN_OPTIONS) INFERD_BINARY=build/$@/inferd sh tools/run_e2e.sh tests/e2e/test_server.py tests/e2e/test_openai.py

check: ## the tree's own rules: layers, format, both compilers without a warning
	@sh tools/setup.sh build check
	@python3 tools/tidy.py
	@clang-format --dry-run -Werror $(wildcard $(addsuffix /*.[ch],src src/* src/backend/cpu tests tests/* tests/unit/* bench tools))
	@$(MAKE) --no-print-directory CC=gcc syntax
	@$(MAKE) --no-print-directory CC=clang syntax

SYNTAX := $(patsubst %.c,%.syntax,$(SRC) src/main.c)
.PHONY: syntax $(SYNTAX)
syntax: $(SYNTAX)
$(SYNTAX): %.syntax: %.c
	$(Q)$(CC) -fsyntax-only -Werror $(CFLAGS) $(EXTRA) $<

$(B)/bench/ops: bench/ops.c bench/probe.c bench/probe.h $(B)/libinferd.a
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(CFLAGS) -O3 -Ibench $(LDFLAGS) -o $@ bench/ops.c bench/probe.c $(B)/libinferd.a $(LIBS)

$(B)/bench/attend: bench/attend.c bench/probe.c bench/probe.h $(B)/libinferd.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -O3 -Ibench $(LDFLAGS) -o $@ bench/attend.c bench/probe.c $(B)/libinferd.a $(LIBS)

$(B)/bench/sampler: bench/sampler.c $(B)/libinferd.a
	@mkdir -p $(@D)
	$(call say,LINK $@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ bench/sampler.c $(B)/libinferd.a $(LIBS)

.PHONY: bench bench-ops bench-attend bench-sampler bench-soak bench-peers
bench-attend: $(B)/bench/attend ## attention and row operations (ARGS="--only int24")
	@$(B)/bench/attend $(ARGS)
bench-sampler: $(B)/bench/sampler ## the sampler over a large vocabulary (ARGS: its size)
	@$(B)/bench/sampler $(ARGS)

bench: all $(B)/bench/ops ## kernels and serving, reached against possible (about 4 minutes)
	@sh bench/run.sh $(B) $(MODELS)

bench-ops: $(B)/bench/ops ## kernels only (ARGS: names of layouts, linear, attention)
	@$(B)/bench/ops $(ARGS)

bench-soak: all ## a mix of everything for an hour: nothing changes, fails or grows (ARGS="--minutes 10")
	@python3 bench/soak.py $(ARGS)

bench-peers: all ## the same serving work on inferd and on llama.cpp's server, side by side (builds llama.cpp once)
	@python3 bench/peers.py $(ARGS)

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

clean: ## remove what was built
	rm -rf build
