/* The native side of serving.py: what a careful C program does for several requests in a batch.
 *
 * Compiled at run time by native.py, like native_loop.c. Prompts are decoded one after the other in
 * full batches; then each call of decode has one token of each sequence.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "declarations.h"

struct functions {
    int32_t (*decode)(struct llama_context *, struct llama_batch);
    llama_token (*sample)(struct llama_sampler *, struct llama_context *, int32_t);
    int64_t (*time_us)(void);
};

/* Generate `n` tokens for each of `n_seqs` prompts of `n_prompt` tokens, with a chain for each.
 * `batch` has room for `n_batch` tokens of one sequence each. Writes the microseconds from the
 * call to each token, [n_seqs][n]. Returns what decode returned.
 */
int32_t native_batch(const struct functions *f, struct llama_context *context,
                     struct llama_sampler **chains, struct llama_batch *batch, int32_t n_batch,
                     const llama_token *prompts, int32_t n_seqs, int32_t n_prompt, int32_t n,
                     llama_token *ids, int64_t *us) {
    int64_t start = f->time_us();
    int32_t n_all = n_seqs * n_prompt;
    for (int32_t begin = 0; begin < n_all; begin += n_batch) {
        int32_t end = begin + n_batch < n_all ? begin + n_batch : n_all;
        batch->n_tokens = end - begin;
        for (int32_t i = begin; i < end; i++) {
            batch->token[i - begin] = prompts[i];
            batch->pos[i - begin] = i % n_prompt;
            batch->n_seq_id[i - begin] = 1;
            batch->seq_id[i - begin][0] = i / n_prompt;
            batch->logits[i - begin] = i % n_prompt == n_prompt - 1;
        }
        int32_t code = f->decode(context, *batch);
        if (code != 0)
            return code;
        for (int32_t i = begin; i < end; i++) {
            if (i % n_prompt != n_prompt - 1)
                continue;
            int32_t s = i / n_prompt;
            ids[s * n] = f->sample(chains[s], context, i - begin);
            us[s * n] = f->time_us() - start;
        }
    }
    batch->n_tokens = n_seqs;
    for (int32_t k = 1; k < n; k++) {
        for (int32_t s = 0; s < n_seqs; s++) {
            batch->token[s] = ids[s * n + k - 1];
            batch->pos[s] = n_prompt + k - 1;
            batch->n_seq_id[s] = 1;
            batch->seq_id[s][0] = s;
            batch->logits[s] = 1;
        }
        int32_t code = f->decode(context, *batch);
        if (code != 0)
            return code;
        for (int32_t s = 0; s < n_seqs; s++) {
            ids[s * n + k] = f->sample(chains[s], context, s);
            us[s * n + k] = f->time_us() - start;
        }
    }
    return 0;
}
