"""Many fits under one protocol: recipes, the engines that run them, and what they found."""
