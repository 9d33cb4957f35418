"""Makes tests/golden/smollm2.json: what transformers computes for 20 chats with SmolLM2-135M-Instruct, the GGUF's weights
dequantized to fp32.

    pip install torch==2.15.* transformers==5.24.* gguf
    python tools/make_smollm2_vectors.py models/smollm2.gguf

For each chat: messages; prompt (ids as transformers' template and tokenizer give them); answer (up to ANSWER greedy ids,
the end token included); margins (logit of the best id minus that of the second, for each id of the answer); logprobs (of
prompt[1:] + answer).
"""
import json
import os
import sys

import torch
from transformers import AutoTokenizer

from check_smollm2 import load_reference

ANSWER = 32
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}
ASKED = [
    "What is the capital of France?", "Name three colours.", "Write a haiku about rain.", "What is 17 times 3?",
    "Translate 'good morning' into Italian.", "Who wrote Hamlet?", "Explain photosynthesis to a child.",
    "Write a Python function that adds two numbers.", "Why is the sky blue?", "List the planets.",
    "Was ist die Hauptstadt von Deutschland?", "Cos'è la pasta?", "Give me a name for a cat.", "¿Qué hora es?",
    "Fix the grammar: she go to school yesterday.", "Is 91 a prime number?", "Summarise: the rain came in from the sea, "
    "and everybody ran for the house.", "数字の一から三まで書いてください。", "Tell me a joke 🙂", "What does `ls -la` do?",
]


def chats():
    for i, text in enumerate(ASKED):
        messages = [SYSTEM] if i % 3 == 1 else []
        if i % 4 == 3:
            messages += [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello, how can I help?"}]
        yield messages + [{"role": "user", "content": text}]


@torch.no_grad()
def vector(model, tokenizer, messages):
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids, margins, cache, new = list(prompt), [], None, prompt
    while len(margins) < ANSWER and (not margins or ids[-1] != end):
        out = model(torch.tensor([new]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        best, cache = out.logits[0, -1].topk(2), out.past_key_values
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        new = ids[-1:]
    logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    next_ones = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return {"messages": messages, "prompt": prompt, "answer": ids[len(prompt):],
            "margins": [float(f"{m:.5g}") for m in margins], "logprobs": [float(f"{p:.7g}") for p in next_ones]}


def main():
    path = sys.argv[1]
    torch.set_num_threads(1)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path))
    model = load_reference(path)
    lines = [json.dumps(vector(model, tokenizer, m), ensure_ascii=False) for m in chats()]
    with open(os.path.join(root, "tests", "golden", "smollm2.json"), "w") as f:
        f.write("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
