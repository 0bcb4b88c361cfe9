"""The table of formats."""

from __future__ import annotations

from collections.abc import Mapping

from distil.exports.form import Form
from distil.exports.to_hf import ToHf
from distil.exports.to_llamafactory import ToLlamaFactory
from distil.exports.to_ms_swift import ToMsSwift
from distil.exports.to_openai import ToOpenAI
from distil.exports.to_trl import ToTrl
from distil.exports.to_verl import ToVerl
from distil.records import ExportFormat

FORMATS: Mapping[ExportFormat, type[Form]] = {
    ExportFormat.TRL: ToTrl,
    ExportFormat.VERL: ToVerl,
    ExportFormat.LLAMAFACTORY: ToLlamaFactory,
    ExportFormat.MS_SWIFT: ToMsSwift,
    ExportFormat.OPENAI: ToOpenAI,
    ExportFormat.HF: ToHf,
}
