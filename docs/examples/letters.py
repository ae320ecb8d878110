"""Letters of a harbour town, with everything that goes wrong in real data: of the tutorial "Your own corpus".

``python docs/examples/letters.py`` writes ``letters/fr.jsonl`` and ``letters/de.jsonl``.
"""

import json
import pathlib

LETTERS = {
    "fr": [
        "Chère Lucie, nous sommes arrivés hier soir au port avec trois heures de retard, mais le poisson était encore "
        "frais et l'auberge avait gardé nos chambres. Écris-moi à lucie.martin@example.org dès que tu auras le temps.",
        "Le conseil de la ville s'est réuni mardi pour parler du nouveau quai. On a voté les travaux du pont, et le "
        "marché restera ouvert le dimanche jusqu'à la fin de l'automne, comme les habitants l'avaient demandé.",
        "LE CONSEIL DE LA VILLE s'est réuni mardi pour parler du nouveau quai. On a voté les travaux du pont, et le "
        "marché restera ouvert le dimanche jusqu'à la fin de l'automne, comme les habitants l'avaient demandé.",
        "Der Rat der Stadt hat am Dienstag getagt und über den neuen Kai gesprochen. Die Brücke wird gebaut, und der "
        "Markt bleibt am Sonntag bis zum Ende des Herbstes geöffnet, so wie es die Bewohner gewünscht hatten.",
        "À bientôt !",
    ],
    "de": [
        "Liebe Anna, die Überfahrt war ruhig, und am Morgen lag der Hafen im Nebel, so dass wir eine Stunde warten "
        "mussten. Der Wirt hat uns Suppe gekocht. Ruf mich bitte an, meine Nummer ist +49 30 23125 117, am besten "
        "abends.",
        "Im Archiv der Stadt liegen Rechnungen aus vier Jahrhunderten, und niemand hatte sie je gezählt. Jetzt "
        "werden sie gescannt, abgeschrieben und geordnet, damit jeder nachlesen kann, was ein Fass Hering "
        "einmal gekostet hat.",
    ],
}
folder = pathlib.Path("letters")
folder.mkdir(exist_ok=True)
for language, letters in LETTERS.items():
    lines = [
        json.dumps({"text": text, "url": f"https://letters.example/{language}/{number}"}, ensure_ascii=False)
        for number, text in enumerate(letters)
    ]
    (folder / f"{language}.jsonl").write_text("\n".join([*lines, '{"text": "cut off']) + "\n", encoding="utf-8")
