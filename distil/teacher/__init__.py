"""The teacher: any OpenAI-compatible server. The only room that imports `openai`."""

from distil.teacher.client import Teacher, TeacherSettings, check_reachable, load_model_names
from distil.teacher.probe import ProbeResult, probe_tool_mode
from distil.teacher.profile import PROFILES, Profile, find_profile
from distil.teacher.replicas import ReplicatedTeacher

__all__ = [
    "PROFILES",
    "ProbeResult",
    "Profile",
    "ReplicatedTeacher",
    "Teacher",
    "TeacherSettings",
    "check_reachable",
    "find_profile",
    "load_model_names",
    "probe_tool_mode",
]
