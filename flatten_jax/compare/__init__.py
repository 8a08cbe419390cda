"""All attentions side by side: one host, one recipe, one machine; what each costs, learns and looks at."""
