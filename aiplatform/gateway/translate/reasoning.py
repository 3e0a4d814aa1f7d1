"""How a model's reasoning travels on a wire that has no place for it.

OpenAI's chat completions show none. Servers compatible with them add a text of their own to the message, under one of two
names, and take it back under the same. Anthropic's thinking is signed, and must come back with its signature. So:

- Anthropic's thinking reaches a caller of chat completions as `reasoning_content`, and whole, with its signature, in
  `thinking_blocks`; a caller who sends `thinking_blocks` back has them carried to Anthropic.
- Such a server's reasoning reaches a caller of messages as a thinking block that is signed with the name of its field, by which
  it finds its way back.
"""

FROM_FIELDS = ("reasoning_content", "reasoning")
