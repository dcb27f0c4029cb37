"""`edgekit bench`: how fast a bundle is on this machine, or a server over the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.json_output import json_document
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.cli.bench_bundle import BundleOptions
    from edgekit.cli.bench_url import UrlOptions

__all__ = ["bench"]

_BUNDLE = "On a bundle"
_URL = "On a URL"


def bench(
    target: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|URL",
            help="Directory of a bundle, or base URL of an OpenAI-style server, e.g. http://127.0.0.1:8080",
        ),
    ],
    streams: Annotated[
        str | None,
        typer.Option(
            "--streams", "-s", help="Streams at once: 1,8. By default 1,4,8 on a bundle, 1,8 on a URL."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw what was seen.")] = None,
    n_prompt: Annotated[
        str | None,
        typer.Option("-p", "--n-prompt", help="Tokens of a prompt: 512 (0: none).", rich_help_panel=_BUNDLE),
    ] = None,
    n_gen: Annotated[
        str | None,
        typer.Option("-n", "--n-gen", help="Tokens to decode: 128 (0: none).", rich_help_panel=_BUNDLE),
    ] = None,
    n_depth: Annotated[
        str | None,
        typer.Option("-d", "--n-depth", help="Tokens in the KV cache before: 0.", rich_help_panel=_BUNDLE),
    ] = None,
    repetitions: Annotated[
        int | None,
        typer.Option("-r", "--repetitions", min=1, help="Of each row: 5.", rich_help_panel=_BUNDLE),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("-t", "--threads", min=1, help="Threads that compute.", rich_help_panel=_BUNDLE),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(help="Minisign public key the bundle is signed with.", rich_help_panel=_BUNDLE),
    ] = None,
    integrity_only: Annotated[
        bool,
        typer.Option("--integrity-only", help="Check hashes, not who signed.", rich_help_panel=_BUNDLE),
    ] = False,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests of each stream: 3.", rich_help_panel=_URL)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of each answer: 128.", rich_help_panel=_URL)
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: requests a second that come at random, whatever the server does: 0.5,1,2.",
            rich_help_panel=_URL,
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds that they come for: 30.", rich_help_panel=_URL)
    ] = None,
    background: Annotated[
        int | None,
        typer.Option(
            min=1, help="Streams that run all the while; their gaps are told apart.", rich_help_panel=_URL
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of prompts.", rich_help_panel=_URL)
    ] = None,
    shared_prefix_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of these, alike in all of them.", rich_help_panel=_URL)
    ] = None,
    forbid_token: Annotated[
        list[int] | None,
        typer.Option(
            help="Id of a token that no answer may have, e.g. the end of the turn.", rich_help_panel=_URL
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of arrivals, prompts and answers: 0.", rich_help_panel=_URL)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds a request may take: 600.", rich_help_panel=_URL)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Another server, in turn; prints ratios.", rich_help_panel=_URL),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Times over: 1; 3 with --against.", rich_help_panel=_URL)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for.", rich_help_panel=_URL)] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the API key; else $EDGEKIT_API_KEY.", rich_help_panel=_URL),
    ] = None,
    against_api_key_file: Annotated[
        Path | None, typer.Option(help="The other server's.", rich_help_panel=_URL)
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust for https.", rich_help_panel=_URL)
    ] = None,
) -> None:
    """Measure a bundle's engine on this machine, or what clients of a server see.

    BUNDLE: prompts (pp) and decoding (tg) at depths and numbers of streams, as llama-bench measures them:
    nothing is drawn, no scheduler; then decoding through scheduler and sampling; each against the memory
    bandwidth measured here.

    URL: streams that ask again when they have their answer, or with --rate requests that come at random.
    """
    for_bundle: dict[str, Any] = {
        "-p": n_prompt,
        "-n": n_gen,
        "-d": n_depth,
        "-r": repetitions,
        "-t": threads,
        "--public-key": public_key,
        "--integrity-only": integrity_only or None,
    }
    for_url: dict[str, Any] = {
        "--requests": requests,
        "--max-tokens": max_tokens,
        "--rate": rate,
        "--duration": duration,
        "--background": background,
        "--prompt-tokens": prompt_tokens,
        "--shared-prefix-tokens": shared_prefix_tokens,
        "--forbid-token": forbid_token or None,
        "--seed": seed,
        "--timeout": timeout,
        "--against": against,
        "--rounds": rounds,
        "--model": model,
        "--api-key-file": api_key_file,
        "--against-api-key-file": against_api_key_file,
        "--ca-file": ca_file,
    }
    with json_document(as_json) as document:
        if plot is not None:
            from edgekit.bench.plots import check_plot_path

            check_plot_path(plot)
        if "://" in target:
            _refuse(for_bundle, "a URL", "a bundle")
            _bench_url(target, streams, for_url, plot, document, quiet=as_json)
            return
        _refuse(for_url, "a bundle", "a URL")
        _bench_bundle(target, streams, for_bundle, plot, document, quiet=as_json)


def _bench_url(
    url: str,
    streams: str | None,
    given: dict[str, Any],
    plot: Path | None,
    document: dict[str, Any],
    *,
    quiet: bool,
) -> None:
    from edgekit.cli.bench_url import UrlOptions, bench_url

    if given["--rate"] is None:
        _refuse({name: given[name] for name in ("--duration", "--background")}, "a closed loop", "--rate")
    elif streams is not None or given["--requests"] is not None:
        raise UsageError(
            "with --rate, requests come at random: --streams and --requests have no meaning",
            hint="how many there are is --rate times --duration",
        )
    if given["--shared-prefix-tokens"] is not None and given["--prompt-tokens"] is None:
        raise UsageError("--shared-prefix-tokens needs --prompt-tokens")
    options: UrlOptions = UrlOptions(
        streams=_numbers(streams or "1,8", "--streams"),
        rates_per_s=_rates(given["--rate"]),
        requests_per_stream=given["--requests"] or 3,
        max_tokens=given["--max-tokens"] or 128,
        duration_s=given["--duration"] or 30.0,
        background=given["--background"] or 0,
        prompt_tokens=given["--prompt-tokens"],
        shared_tokens=given["--shared-prefix-tokens"] or 0,
        forbidden_tokens=tuple(given["--forbid-token"] or ()),
        seed=given["--seed"] or 0,
        timeout_s=given["--timeout"] or 600.0,
        rounds=given["--rounds"] or (3 if given["--against"] else 1),
        model=given["--model"],
        ca_file=given["--ca-file"],
    )
    bench_url(
        url,
        given["--against"],
        options,
        key_files=(given["--api-key-file"], given["--against-api-key-file"]),
        plot=plot,
        document=document,
        quiet=quiet,
    )


def _bench_bundle(
    path: str,
    streams: str | None,
    given: dict[str, Any],
    plot: Path | None,
    document: dict[str, Any],
    *,
    quiet: bool,
) -> None:
    from edgekit.cli.bench_bundle import BundleOptions, bench_bundle

    if not Path(path).is_dir():
        raise UsageError(
            f"{path}: neither a bundle's directory nor a URL",
            hint="give a directory that `edgekit export` wrote, or http://HOST:PORT",
        )
    options: BundleOptions = BundleOptions(
        prompt_tokens=_numbers(given["-p"] or "512", "-p", least=0),
        answer_tokens=_numbers(given["-n"] or "128", "-n", least=0),
        depths=_numbers(given["-d"] or "0", "-d", least=0),
        streams=_numbers(streams or "1,4,8", "--streams"),
        repetitions=given["-r"] or 5,
        threads=given["-t"],
        public_key=given["--public-key"],
        integrity_only=bool(given["--integrity-only"]),
    )
    bench_bundle(Path(path), options, plot=plot, document=document, quiet=quiet)


def _refuse(options: dict[str, Any], target: str, other: str) -> None:
    """Raise UsageError when an option is given that has no meaning here."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: no meaning for {target}, only for {other}")


def _numbers(text: str, option: str, *, least: int = 1) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"{option} {text}: not numbers with commas between") from error
    if min(numbers) < least:
        raise UsageError(f"{option} {text}: {min(numbers)} is less than {least}")
    return numbers


def _rates(text: str | None) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise UsageError(f"--rate {text}: not numbers with commas between") from error
    if not all(0 < rate <= 10_000 for rate in rates):
        raise UsageError(f"--rate {text}: rates are above 0 and at most 10000 a second")
    return rates
