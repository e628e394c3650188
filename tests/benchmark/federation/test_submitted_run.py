"""How the harness waits for the jobs of a lead."""

from types import SimpleNamespace
from typing import Any

from nvflare.fuel.flare_api.api_spec import NoConnection

from benchmark.federation.lead import Run


def test_a_server_that_is_too_busy_to_answer_is_asked_again(tmp_path):
    answers: list[str | Exception] = [NoConnection("busy"), "RUNNING", NoConnection("busy"), "FINISHED:COMPLETED"]

    def status(job: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    session = SimpleNamespace(get_job_status=status, download_job_result=lambda job, folder: f"{folder}/{job}")
    lead: Any = SimpleNamespace(session=session, downloads=tmp_path)
    run = Run("a-job", lead)
    assert run.finish() == {}
    assert run.state == "FINISHED:COMPLETED"
    assert run.results == tmp_path / "a-job" / "workspace"
    assert not answers
