"""The paper's numbers for reference, in per cent: Ziya2 (arXiv 2311.03301), by OpenCompass, 13B models.

They say what such a table looks like at the paper's size; nothing here is compared with them.
"""

TITLES = {
    "ceval": "C-Eval",
    "cmmlu": "CMMLU",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "math": "MATH",
    "humaneval": "HumanEval",
}

ROWS: dict[str, dict[str, float]] = {
    name: dict(zip(("mmlu", "cmmlu", "ceval", "gsm8k", "math", "humaneval"), values, strict=True))
    for name, values in {
        "LLaMA2-13B": (55.74, 37.90, 34.99, 28.81, 4.98, 15.24),
        "Ziya-13B": (43.88, 31.09, 28.97, 17.97, 3.08, 14.02),
        "Baichuan2-13B": (59.17, 61.97, 58.10, 52.77, 10.08, 17.07),
        "GPT-3.5-turbo-0613": (68.54, 54.06, 51.10, 57.77, 13.96, 52.44),
        "Ziya2-13B": (61.36, 60.95, 58.84, 68.46, 10.98, 28.87),
    }.items()
}

SOURCE = "Ziya2, arXiv 2311.03301: OpenCompass, 13B models"
