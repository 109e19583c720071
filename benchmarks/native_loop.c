/* The native side of overhead.py: what a careful C program does for each token, and nothing else.
 *
 * Compiled at run time by native.py against the declarations of the loaded build; the functions of
 * that build come in as pointers, so nothing is linked.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "declarations.h"

struct functions {
    int32_t (*decode)(struct llama_context *, struct llama_batch);
    llama_token (*sample)(struct llama_sampler *, struct llama_context *, int32_t);
    int64_t (*time_us)(void);
};

/* Decode `prompt`, then sample `n` tokens into `ids` and decode all but the last one with `one`, a
 * batch of one token. Writes the microseconds to the first token, from there to the last one, and
 * of those the processor time. Returns what decode returned.
 */
int32_t native_loop(const struct functions *f, struct llama_context *context,
                    struct llama_sampler *chain, const struct llama_batch *prompt,
                    const struct llama_batch *one, int32_t n, llama_token *ids,
                    int64_t us[3]) {
    int64_t start = f->time_us();
    int32_t code = f->decode(context, *prompt);
    if (code != 0)
        return code;
    ids[0] = f->sample(chain, context, -1);
    int64_t first = f->time_us();
    clock_t cpu = clock();
    for (int32_t i = 1; i < n; i++) {
        one->token[0] = ids[i - 1];
        one->pos[0] = prompt->n_tokens + i - 1;
        code = f->decode(context, *one);
        if (code != 0)
            return code;
        ids[i] = f->sample(chain, context, -1);
    }
    us[0] = first - start;
    us[1] = f->time_us() - first;
    us[2] = (int64_t)((clock() - cpu) * 1e6 / CLOCKS_PER_SEC);
    return 0;
}
