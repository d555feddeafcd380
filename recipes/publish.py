"""Publishes a reinforced dataset on the Hub, as it is.

    python recipes/publish.py --folder outputs/cifar100-plus --repo_id me/cifar100-plus --dry_run True
    python recipes/publish.py --folder outputs/cifar100-plus --repo_id me/cifar100-plus --tag v1

Run the same command again to continue after an interruption; files that the Hub has are not sent again.
"""

from dataclasses import dataclass

from arguments import one_line_errors, option, parse, required


@dataclass
class PublishArguments:
    folder: str = required("Folder that recipes/reinforce.py wrote.")
    repo_id: str = required("owner/name; created if it does not exist.")
    config_name: list[str] = option("The configurations to publish, default all of them.", [])
    private: bool = option("Create the repository as a private one.", False)
    revision: str | None = option("Branch, created if it does not exist; default main.")
    tag: str | None = option("Name to give to the result.")
    commit_message: str | None = option("Default: the name and N of each configuration.")
    dry_run: bool = option("List what would be sent, and send nothing.", False)


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [PublishArguments])
    from hf_reinforce import push_to_hub

    try:
        result = push_to_hub(
            args.folder,
            args.repo_id,
            config_name=args.config_name or None,
            private=args.private,
            revision=args.revision,
            tag=args.tag,
            commit_message=args.commit_message,
            dry_run=args.dry_run,
        )
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. What was sent is kept; run the same command again to continue.") from None
    for change in result.changes:
        print(f"{change.reason:8} {change.size:>14,}  {change.path}")
    sent = [change.size for change in result.changes if change.reason != "deleted"]
    print(f"{len(sent)} files, {sum(sent):,} bytes" + (" would be sent" if args.dry_run else f": {result.commit_url}"))


if __name__ == "__main__":
    main()
