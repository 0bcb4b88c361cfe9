"""The teacher: any OpenAI-compatible server. The only room that imports `openai`."""

from distil.teacher.availability import OutagePolicy
from distil.teacher.client import Teacher, TeacherSettings, check_reachable, load_model_names
from distil.teacher.probe import ProbeResult, probe_tool_mode
from distil.teacher.profile import PROFILES, Profile, find_profile
from distil.teacher.retry import Deadline, RetryPolicy

__all__ = [
    "PROFILES",
    "Deadline",
    "OutagePolicy",
    "ProbeResult",
    "Profile",
    "RetryPolicy",
    "Teacher",
    "TeacherSettings",
    "check_reachable",
    "find_profile",
    "load_model_names",
    "probe_tool_mode",
]
