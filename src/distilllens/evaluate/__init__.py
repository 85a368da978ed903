"""Is a student any good? Answers, metrics of answers, and scores with their errors."""
