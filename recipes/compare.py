"""Compares evaluated students: metrics with 95 % intervals, which differences are noise, and pictures.

    python recipes/compare.py outputs/cifar100-plain outputs/cifar100-reinforced
    python recipes/compare.py plain=outputs/plain-0,outputs/plain-1 'reinforced=outputs/reinforced-*'

RUN [RUN ...] are folders of recipes/evaluate.py --output_dir, or students' folders with evaluation/ in them; the first
is what the others are compared with. NAME=RUN gives a name, NAME=RUN,RUN joins seeds of the same training.
"""

from dataclasses import dataclass

from arguments import one_line_errors, option, parse, required

FIRST = "runs"  # the flag that may be left out


@dataclass
class CompareArguments:
    runs: list[str] = required("The runs; the flag may be left out if they come first.")
    output_dir: str = option("Folder of comparison.json, comparison.md and the pictures.", "outputs/comparison")
    num_resamples: int = option("Resamples of the bootstrap over images.", 1000)
    seed: int = option("Seed of the bootstrap.", 0)


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [CompareArguments], first=FIRST)
    from hf_reinforce.evaluation.comparison import compare
    from hf_reinforce.evaluation.comparison_report import write_comparison
    from hf_reinforce.evaluation.runs import load_groups

    groups = load_groups(args.runs)
    print(write_comparison(compare(groups, args.num_resamples, args.seed), groups, args.output_dir))
    print(f"\nWritten: {args.output_dir}/comparison.md, comparison.json and pictures")


if __name__ == "__main__":
    main()
