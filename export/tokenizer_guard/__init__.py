"""Whether an export splits text, and renders chats, as the student's own tokenizer does."""
