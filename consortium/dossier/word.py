"""A document as DOCX, by python-docx."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from typing import Any

import docx
from docx.enum.table import WD_TABLE_ALIGNMENT
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Cm, Pt, RGBColor

from consortium.dossier.document import Document, Entry

SOFT, MARK, GOOD = RGBColor(0x57, 0x60, 0x6A), RGBColor(0xB3, 0x26, 0x1E), RGBColor(0x00, 0x66, 0x4A)
SHADE = "FDF0EE"  # behind what is missing
WIDTHS = (Cm(5.6), Cm(11.4))
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # XML cannot hold them
LOCALES = {"en": "en-GB", "fr": "fr-FR", "de": "de-DE", "es": "es-ES", "it": "it-IT"}


def build(document: Document) -> Any:
    """The document; save it with ``.save(path)``."""
    file = docx.Document()
    _set_up(file, document)
    file.add_heading(document.title, 0)
    _about(file, document)
    for section in document.sections:
        file.add_heading(f"{section.clause}  {_clean(section.title)}", 1)
        table = file.add_table(0, 2, style="Table Grid")
        table.alignment, table.autofit = WD_TABLE_ALIGNMENT.CENTER, False
        for column, width in zip(table.columns, WIDTHS, strict=True):
            column.width = width
        _dress(table)
        for entry in section.entries:
            _entry(table, entry, section.clause)
    if document.notes:
        file.add_heading(document.words["sources"], 1)
        _small(file.add_paragraph(document.words["sources_note"]))
        for note in document.notes:
            _small(file.add_paragraph(_clean(f"[{note.number}] {note.file}, {note.at}; SHA-256 {note.sha256}")))
    return file


def _set_up(file: Any, document: Document) -> None:
    told = file.core_properties
    told.title, told.author, told.language = f"{document.title}: {document.model}", "hanse", LOCALES[document.language]
    told.created = told.modified = datetime.datetime.fromisoformat(document.date)
    page = file.sections[0]
    page.page_width, page.page_height = Cm(21), Cm(29.7)
    page.left_margin = page.right_margin = page.top_margin = page.bottom_margin = Cm(2)
    normal = file.styles["Normal"]
    normal.font.name, normal.font.size = "Calibri", Pt(10)
    normal.paragraph_format.space_after = Pt(2)
    language = OxmlElement("w:lang")
    language.set(qn("w:val"), LOCALES[document.language])
    normal.element.get_or_add_rPr().append(language)
    for name, size in (("Title", 22), ("Heading 1", 13)):
        style = file.styles[name]
        style.font.name, style.font.size, style.font.color.rgb = "Calibri", Pt(size), RGBColor(0x1B, 0x1F, 0x24)
        style.element.rPr.rFonts.set(qn("w:asciiTheme"), "")
        for key in ("asciiTheme", "hAnsiTheme", "eastAsiaTheme", "cstheme"):
            style.element.rPr.rFonts.attrib.pop(qn(f"w:{key}"), None)


def _dress(table: Any) -> None:
    """Thin grey lines, and room between them and the text."""
    settings = table._tbl.tblPr
    lines, room = OxmlElement("w:tblBorders"), OxmlElement("w:tblCellMar")
    for edge in ("top", "left", "bottom", "right", "insideH", "insideV"):
        line = OxmlElement(f"w:{edge}")
        for key, value in (("val", "single"), ("sz", "4"), ("color", "C8CED5")):
            line.set(qn(f"w:{key}"), value)
        lines.append(line)
    for edge, twips in (("top", 60), ("left", 110), ("bottom", 60), ("right", 110)):
        side = OxmlElement(f"w:{edge}")
        side.set(qn("w:w"), str(twips))
        side.set(qn("w:type"), "dxa")
        room.append(side)
    settings.append(lines)
    settings.append(room)


def _about(file: Any, document: Document) -> None:
    said = document.words
    told = (("model", document.model), ("version", document.version), ("date", document.date), ("law", document.law))
    for key, value in told:
        line = file.add_paragraph()
        line.add_run(f"{said[key]}: ").font.color.rgb = SOFT
        line.add_run(_clean(value)).bold = True
    line = file.add_paragraph()
    line.add_run(f"{said['fields']}: ").font.color.rgb = SOFT
    for index, (status, badge, number) in enumerate(document.counts):
        run = line.add_run(f"{', ' if index else ''}{badge} {number}")
        if status == "missing":
            run.bold, run.font.color.rgb = True, MARK
    _small(file.add_paragraph(said["no_advice"]))


def _entry(table: Any, entry: Entry, clause: str) -> None:
    row = table.add_row()
    for cell, width in zip(row.cells, WIDTHS, strict=True):
        cell.width = width
    row._tr.get_or_add_trPr().append(OxmlElement("w:cantSplit")) if not entry.table else None
    label, content = row.cells
    label.paragraphs[0].add_run(_clean(entry.label)).bold = True
    if entry.clause != clause:
        _small(label.add_paragraph(entry.clause))
    if entry.table:
        _columns(content, entry.table.head, entry.table.rows)
    else:
        _lines(content, entry)
    _from(content, entry)
    if entry.status == "missing":
        for cell in row.cells:
            shade = OxmlElement("w:shd")
            shade.set(qn("w:val"), "clear")
            shade.set(qn("w:fill"), SHADE)
            cell._tc.get_or_add_tcPr().append(shade)


def _lines(cell: Any, entry: Entry) -> None:
    first = cell.paragraphs[0]
    if not entry.lines:
        run = first.add_run(entry.badge)
        run.bold, run.font.color.rgb = True, MARK if entry.status == "missing" else SOFT
        if entry.reason:
            first.add_run(f": {_clean(entry.reason)}").font.color.rgb = MARK if entry.status == "missing" else SOFT
    for index, line in enumerate(entry.lines):
        paragraph = first if index == 0 else cell.add_paragraph()
        if len(entry.lines) > 1:
            paragraph.style = "List Bullet"
        paragraph.add_run(_clean(line))


def _columns(cell: Any, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows of a table as paragraphs, a column a line: a table in a cell of a page's width can hold no long links."""
    for index, row in enumerate(rows):
        paragraph = cell.paragraphs[0] if index == 0 else cell.add_paragraph()
        paragraph.paragraph_format.space_after = Pt(6)
        for number, (name, value) in enumerate(zip(head, row, strict=True)):
            if number:
                paragraph.add_run().add_break()
            paragraph.add_run(f"{_clean(name)}: ").font.color.rgb = SOFT
            paragraph.add_run(_clean(value)).bold = number == 0


def _from(cell: Any, entry: Entry) -> None:
    marks = " ".join(f"[{number}]" for number in entry.notes)
    shown = entry.badge if entry.lines or entry.table else ""
    if shown or marks:
        paragraph = cell.add_paragraph()
        run = paragraph.add_run(" ".join(filter(None, (shown, marks))))
        run.font.size, run.font.color.rgb = Pt(8), GOOD if entry.status == "evidence" else SOFT


def _small(paragraph: Any) -> None:
    for run in paragraph.runs:
        run.font.size, run.font.color.rgb = Pt(8), SOFT


def _clean(text: str) -> str:
    return CONTROLS.sub(" ", text)
