"""The chat template of a language model that brings none: turns between marks, media as placeholders.

`{% generation %}` stands around what the assistant says, the end of its turn included: there is the loss, and what
`return_assistant_tokens_mask` gives is made of it.
"""

TURN, END = "<|turn|>", "<|end|>"  # special tokens of a tokenizer that is trained for it
TOKENS = {"image": "<image>", "video": "<video>", "audio": "<audio>"}

CONTENT = (
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- elif part['type'] in ('image', 'video', 'audio') -%}{{ '<' + part['type'] + '>' }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
)

# of models whose tokenizer has these marks, Qwen's and SmolLM2's among them
CHATML_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}" + CONTENT + "{{ '<|im_end|>' }}{%- endgeneration -%}"
    "{%- else -%}" + CONTENT + "{{ '<|im_end|>' }}{%- endif -%}"
    "{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|turn|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}" + CONTENT + "{{ '<|end|>' }}{%- endgeneration -%}"
    "{%- else -%}" + CONTENT + "{{ '<|end|>' }}{%- endif -%}"
    "{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|turn|>assistant\n' }}{%- endif -%}"
)
