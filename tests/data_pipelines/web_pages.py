"""Web pages built by hand, as sites build them: what a reader came for, and everything else around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape

MENU = {
    "fr": [
        "Accueil",
        "Actualités",
        "Boutique",
        "Qui sommes-nous ?",
        "Nous contacter",
        "Se connecter",
        "Mon panier (0)",
    ],
    "de": ["Startseite", "Aktuelles", "Shop", "Über uns", "Kontakt", "Anmelden", "Warenkorb (0)"],
    "es": ["Inicio", "Noticias", "Tienda", "Quiénes somos", "Contacto", "Iniciar sesión", "Mi cesta (0)"],
    "it": ["Home", "Notizie", "Negozio", "Chi siamo", "Contatti", "Accedi", "Carrello (0)"],
}
COOKIES = {
    "fr": "Ce site utilise des cookies afin de vous proposer la meilleure expérience possible. En poursuivant votre "
    "navigation, vous acceptez leur utilisation.",
    "de": "Diese Website verwendet Cookies, um Ihnen das bestmögliche Erlebnis zu bieten. Mit der weiteren Nutzung "
    "stimmen Sie der Verwendung zu.",
    "es": "Este sitio utiliza cookies para ofrecerle la mejor experiencia posible. Si continúa navegando, acepta su "
    "uso.",
    "it": "Questo sito utilizza i cookie per offrirti la migliore esperienza possibile. Proseguendo la navigazione ne "
    "accetti l'utilizzo.",
}
FOOT = {
    "fr": "© 2026 Éditions du Port. Tous droits réservés. Mentions légales. Politique de confidentialité.",
    "de": "© 2026 Hafenverlag GmbH. Alle Rechte vorbehalten. Impressum. Datenschutzerklärung.",
    "es": "© 2026 Editorial del Puerto. Todos los derechos reservados. Aviso legal. Política de privacidad.",
    "it": "© 2026 Edizioni del Porto. Tutti i diritti riservati. Note legali. Informativa sulla privacy.",
}


@dataclass(frozen=True)
class WebPage:
    """``html`` of a page, the texts that are its content (``wanted``) and those that are not (``unwanted``)."""

    layout: str
    language: str
    html: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]


def web_pages(prose: Callable[[str], list[str]]) -> Iterator[WebPage]:
    """Every layout in four languages; the content is real prose, up to four passages a page."""
    for language, menu in MENU.items():
        passages = prose(language)
        for number, layout in enumerate(LAYOUTS):
            body, aside = passages[4 * number : 4 * number + 4], passages[4 * number + 4 : 4 * number + 6]
            title = " ".join(body[0].split()[:6])
            teasers = [" ".join(text.split()[:14]) + "…" for text in aside]
            if layout is short_article:
                body = body[:1]
            inner, comments = layout(
                title, [escape(text) for text in body], [escape(text) for text in teasers], language
            )
            yield WebPage(
                layout.__name__,
                language,
                f'<!DOCTYPE html><html lang="{language}"><head><meta charset="utf-8">'
                f"<title>{escape(title)} | Port</title>"
                "<style>p { color: red }</style><script>var text = 'nobody reads this';</script></head>"
                f"<body>{inner}</body></html>",
                tuple(body),
                (*menu, COOKIES[language], FOOT[language], *teasers, *comments),
            )


def links(texts: list[str]) -> str:
    return "<ul>" + "".join(f'<li><a href="/{n}">{text}</a></li>' for n, text in enumerate(texts)) + "</ul>"


def paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{text}</p>\n" for text in texts)


def around(main: str, teasers: list[str], language: str) -> str:
    """A page of today: header, navigation, main, aside, footer, a banner about cookies."""
    return (
        f'<header><a href="/">Port</a><nav>{links(MENU[language])}</nav></header>{main}'
        f'<aside class="related"><h3>+</h3>{links(teasers)}</aside><footer><p>{FOOT[language]}</p></footer>'
        f'<div id="cookie-banner" class="cookie-consent"><p>{COOKIES[language]}</p><button>OK</button></div>'
    )


def article(title, body, teasers, language):
    main = f'<main><article><h1>{title}</h1><p class="byline">12.03.2026</p>{paragraphs(body)}</article></main>'
    return around(main, teasers, language), []


def blog_with_comments(title, body, teasers, language):
    said = ["+1!", "Merci / Danke / Gracias / Grazie :-)"]
    comments = "".join(f'<li class="comment"><b>anna77</b><p>{text}</p></li>' for text in said)
    main = (f'<div id="content"><div class="post"><h2 class="entry-title">{title}</h2><div class="entry-content">'
            f'{paragraphs(body)}</div></div><div id="comments"><h3>2</h3><ol>{comments}</ol></div></div>')  # fmt: skip
    return around(main, teasers, language), said


def tables_of_2003(title, body, teasers, language):
    text = "<br><br>".join(body)
    menu = "<br>".join(f'<a href="{n}.htm">{one}</a>' for n, one in enumerate(MENU[language]))
    return (
        f'<table width="780" border="0"><tr><td colspan="2"><img src="logo.gif" alt="Logo"></td></tr><tr>'
        f'<td width="150" valign="top"><font size="2">{menu}</font></td><td valign="top"><font size="5"><b>{title}</b>'
        f'</font><br><font size="3">{text}</font></td></tr><tr><td colspan="2"><font size="1">{FOOT[language]}</font>'
        f"<br>{COOKIES[language]}<br>{'<br>'.join(teasers)}</td></tr></table>"
    ), []


def divs_without_meaning(title, body, teasers, language):
    inner = "".join(f'<div class="c12">{text}</div>' for text in body)
    menu = "".join(f'<div class="c3"><a href="/{n}">{one}</a></div>' for n, one in enumerate(MENU[language]))
    more = "".join(f'<div class="c7"><a href="/m{n}">{one}</a></div>' for n, one in enumerate(teasers))
    return (
        f'<div class="c1"><div class="c2">{menu}</div><div class="c9"><div class="c11">{title}</div>{inner}</div>'
        f'<div class="c5">{more}</div><div class="c4">{FOOT[language]}</div>'
        f'<div class="c6">{COOKIES[language]}</div></div>'
    ), []


def manual_with_code_and_table(title, body, teasers, language):
    table = "<table><tr><th>-a</th><td>1</td></tr><tr><th>-b</th><td>2</td></tr></table>"
    parts = f"<h1>{title}</h1>{paragraphs(body[:2])}<pre><code>sudo make install</code></pre>{table}<h2>2.</h2>"
    main = f'<div class="document" role="main"><div class="section">{parts}{paragraphs(body[2:])}</div></div>'
    return around(f'<div class="sphinxsidebar">{links(MENU[language])}</div>{main}', teasers, language), []


def list_of_long_items(title, body, teasers, language):
    items = "".join(f"<li>{text}</li>" for text in body)
    return around(f"<main><h1>{title}</h1><ol>{items}</ol></main>", teasers, language), []


def short_article(title, body, teasers, language):
    return around(f"<main><article><h1>{title}</h1>{paragraphs(body)}</article></main>", teasers, language), []


def quotes_and_headings(title, body, teasers, language):
    quote = f"<blockquote><p>{body[1]}</p></blockquote>"
    main = (f"<article><h1>{title}</h1><h2>I</h2><p>{body[0]}</p>{quote}<h2>II</h2>"
            f"<p>{body[2]}</p><figure><img src='a.jpg'><figcaption>{body[3]}</figcaption></figure>"
            f"</article>")  # fmt: skip
    return around(main, teasers, language), []


def forum(title, body, teasers, language):
    posts = "".join(
        f'<div class="post" id="p{n}"><div class="author"><a href="/u{n}">user{n}</a></div>'
        f'<div class="postbody"><div class="content">{text}</div></div></div>' for n, text in enumerate(body)
    )  # fmt: skip
    return around(f'<div id="page-body"><h2 class="topic-title">{title}</h2>{posts}</div>', teasers, language), []


def consent_over_everything(title, body, teasers, language):
    wall = f'<div class="modal" style="display:none"><div class="gdpr"><p>{COOKIES[language]}</p></div></div>'
    main = f'<div class="wrapper"><section><h1>{title}</h1>{paragraphs(body)}</section></div>'
    return wall + around(main, teasers, language), []


LAYOUTS = (
    article, blog_with_comments, tables_of_2003, divs_without_meaning, manual_with_code_and_table, list_of_long_items,
    short_article, quotes_and_headings, forum, consent_over_everything,
)  # fmt: skip
