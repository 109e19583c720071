"""Greedy generation with the low-level API, step by step.

    python examples/simple_lowlevel.py [MODEL] [-p PROMPT] [-n N]

The same steps as in llama.cpp's examples/simple: load, tokenize, check the context size, decode the
prompt, then sample, print and decode one token at a time. The default model is the demo model.
"""

from __future__ import annotations

import argparse
import sys

from llama_cffi import Batch, Context, Model, SamplerChain, demo, get_library

parser = argparse.ArgumentParser()
parser.add_argument("model", nargs="?", default=demo.model_path())
parser.add_argument("-p", "--prompt", default="<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n"
                    "<|im_start|>assistant\n")  # fmt: skip
parser.add_argument("-n", "--n-predict", type=int, default=32)
parser.add_argument("-c", "--n-ctx", type=int, default=256)
args = parser.parse_args()

# initialize llama.cpp and the backends of this machine
library = get_library()

# load the model, create a context
model = Model(args.model)
context = Context(model, n_ctx=args.n_ctx, n_threads=1)

# build the sampler chain
chain = SamplerChain(model).add_greedy()

# tokenize the prompt
tokens = model.vocab.tokenize(args.prompt, add_special=True, parse_special=True)
n_kv_req = len(tokens) + args.n_predict
print(f"n_predict = {args.n_predict}, n_ctx = {context.n_ctx}, n_kv_req = {n_kv_req}")
if n_kv_req > context.n_ctx:
    sys.exit(
        "error: n_kv_req > n_ctx, the required KV cache size is not big enough\n"
        "either reduce n_predict or increase n_ctx."
    )

# print the prompt token by token
print("".join(model.vocab.detokenize([token], special=True) for token in tokens))

# decode the prompt; only its last token needs logits
batch = Batch(n_tokens_max=512)
for pos, token in enumerate(tokens):
    batch.add(token, pos, seq_ids=[0], logits=pos == len(tokens) - 1)
context.decode(batch)

# main loop
n_cur, n_decode, result = len(tokens), 0, b""
started = library.lib.ggml_time_us()  # every C function of the loaded build is in library.lib

while n_cur < n_kv_req:
    # sample the next token; the chain also accepts it
    token = chain.sample(context, -1)

    # is it an end-of-generation token?
    if model.vocab.is_eog(token):
        break
    result += model.vocab.token_to_piece(token)

    # decode it
    batch.clear()
    batch.add(token, n_cur, seq_ids=[0], logits=True)
    context.decode(batch)
    n_decode += 1
    n_cur += 1

seconds = (library.lib.ggml_time_us() - started) / 1e6
print(result.decode("utf-8", "replace"))
print(f"\ndecoded {n_decode} tokens in {seconds:.2f} s, speed: {n_decode / seconds:.2f} t/s")

# cleanup: contexts and chains close with their model
model.close()
