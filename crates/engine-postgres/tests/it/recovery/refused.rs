//! What would lose data without a word is refused before the first write.
