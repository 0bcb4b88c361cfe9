"""The teacher: any OpenAI-compatible server. The only room that imports `openai`."""

from distil.teacher.availability import OutagePolicy
from distil.teacher.client import Teacher, TeacherSettings, check_reachable, first_reachable, load_model_names
from distil.teacher.examine import examine, list_models
from distil.teacher.findings import Examination, Finding, Result
from distil.teacher.models import AnsweredModels, unlisted_warning
from distil.teacher.probe import ProbeResult, probe_fields, probe_tool_mode, recalled_probe
from distil.teacher.profile import PROFILES, Profile, find_profile
from distil.teacher.replicas import ReplicatedTeacher
from distil.teacher.retry import Deadline, RetryPolicy

__all__ = [
    "PROFILES",
    "AnsweredModels",
    "Deadline",
    "Examination",
    "Finding",
    "OutagePolicy",
    "ProbeResult",
    "Profile",
    "ReplicatedTeacher",
    "Result",
    "RetryPolicy",
    "Teacher",
    "TeacherSettings",
    "check_reachable",
    "examine",
    "find_profile",
    "first_reachable",
    "list_models",
    "load_model_names",
    "probe_fields",
    "probe_tool_mode",
    "recalled_probe",
    "unlisted_warning",
]
