"""Other projects' Docker executors, timed as ours are; run by a Python that has them (`make bench OTHERS=PYTHON`).

It stands alone, for that Python does not have labsandbox. Reads one JSON line for each run, {"way": …, "program": …}, and
answers with one: the seconds from the request to the output and to everything destroyed, or what went wrong. Both hand the
output over when the code has ended, so their first line comes then.
"""

import asyncio
import json
import sys
import time

LIMITS = {"network_mode": "none", "mem_limit": "4g", "nano_cpus": 2_000_000_000, "pids_limit": 256}


def llm_sandbox(image: str, program: str) -> tuple[float, float]:
    """Its own default but for what would need a network: the container as it is, without packages of its own."""
    from llm_sandbox import SandboxSession

    began = time.perf_counter()
    with SandboxSession(
        image=image, lang="python", runtime_configs=LIMITS, skip_environment_setup=True, workdir="/tmp"
    ) as session:
        done = session.run(program)
        first = time.perf_counter() - began
    assert done.exit_code == 0 and done.stdout.strip() == "1", done
    return first, time.perf_counter() - began


def autogen_ext(image: str, program: str) -> tuple[float, float]:
    """It takes no limits; the container has the host's network and all of its memory."""
    from autogen_core import CancellationToken
    from autogen_core.code_executor import CodeBlock
    from autogen_ext.code_executors.docker import DockerCommandLineCodeExecutor

    async def run() -> tuple[float, float]:
        began = time.perf_counter()
        executor = DockerCommandLineCodeExecutor(image=image)
        await executor.start()
        try:
            done = await executor.execute_code_blocks([CodeBlock(code=program, language="python")], CancellationToken())
            first = time.perf_counter() - began
        finally:
            await executor.stop()
        assert done.exit_code == 0 and done.output.strip() == "1", done
        return first, time.perf_counter() - began

    return asyncio.run(run())


WAYS = {"llm-sandbox": llm_sandbox, "autogen-ext": autogen_ext}


def main(image: str) -> None:
    """Says which of them can be loaded, then answers until its input ends."""
    there = []
    for name, module in (("llm-sandbox", "llm_sandbox.docker"), ("autogen-ext", "autogen_ext.code_executors.docker")):
        try:
            __import__(module)
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
        else:
            there.append(name)
    print(json.dumps(there), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer: object = WAYS[asked["way"]](image, asked["program"])
        except Exception as error:
            answer = " ".join(str(error).split())[:300]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
