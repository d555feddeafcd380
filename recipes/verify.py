"""Replays a reinforced dataset, asks its teacher again, and compares the answers with the stored targets.

    python recipes/verify.py --dataset_name outputs/cifar100-plus --max_records 1000

For every record: KL(the teacher's answer now || stored target), over the stored classes and the tail. Rounding may
cost 1e-4; more means that the target does not belong to the pixels.
"""

from dataclasses import dataclass, replace

from arguments import check_device, one_line_errors, option, parse, required, write_json


@dataclass
class VerifyArguments:
    dataset_name: str = required("Hub id or folder of a reinforced dataset.")
    dataset_config_name: str | None = option("Its configuration, default the only one.")
    dataset_revision: str | None = option("Its Hub revision: branch, tag or commit, default main.")
    source_name_or_path: str | None = option("Hub id or folder of the images, default the recorded one.")
    teacher_name_or_path: list[str] = option("The teacher, default the recorded one.", [])
    teacher_checkpoint: str | None = option("Weights of a teacher that is a bare timm architecture.")
    accept_pixel_mismatch: bool = option("Go on although the reference views come out differently here.", False)
    max_records: int | None = option("Check so many records, spread evenly; default all of them.")
    device: str | None = option("Device of the teacher, default a GPU where there is one.")
    output_json: str | None = option("File to write the result to.")


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [VerifyArguments])
    check_device(args.device)
    import torch
    from tqdm.auto import tqdm

    from hf_reinforce import load_reinforced
    from hf_reinforce.targets.class_distribution import KL_BOUND, Targets, batch_targets, rounding_kl

    dataset = load_reinforced(
        args.dataset_name,
        args.dataset_config_name,
        revision=args.dataset_revision,
        source=args.source_name_or_path,
        accept_pixel_mismatch=args.accept_pixel_mismatch,
    )
    target, num_samples = dataset.config.classes, dataset.config.num_samples
    if target is None or not all(teacher["weight_hash"] for teacher in target.teachers):
        raise ValueError(f"{args.dataset_name} has no answers of teachers over classes whose weights are recorded.")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    teacher = recorded_teacher(args, target).to(device, target.teachers[0]["dtype"])
    total = len(dataset) * num_samples
    records = torch.linspace(0, total - 1, min(args.max_records or total, total)).round().long().tolist()
    divergences = []
    for start in tqdm(range(0, len(records), 64), desc="Verifying", unit="batch"):
        pairs = [divmod(record, num_samples) for record in records[start : start + 64]]
        answer = teacher(torch.stack([dataset.view(*pair) for pair in pairs]).to(device)).cpu().double()
        stored = batch_targets(target.collate([dataset.target(*pair) for pair in pairs]))
        top = answer.gather(-1, stored.label)
        rest = answer.scatter(-1, stored.label, -torch.inf).logsumexp(-1)
        divergences += rounding_kl(Targets(stored.label, top, rest), stored).tolist()
    above = sum(divergence > KL_BOUND for divergence in divergences)
    result = {"records": len(records), "max_kl": max(divergences), "bound": KL_BOUND, "above_bound": above}
    for name, value in result.items():
        print(f"{name:14} {value}")
    if args.output_json:
        write_json(args.output_json, result)
    if above:
        raise SystemExit(1)


def recorded_teacher(args, target):
    """The teacher whose answers are stored: the same weights, which look at images as they did then."""
    from hf_reinforce import Teacher
    from hf_reinforce.models.networks import named_member
    from hf_reinforce.models.preprocessing import preprocessing_from

    names = args.teacher_name_or_path or [teacher["name"] for teacher in target.teachers]
    if len(names) != len(target.teachers):
        raise ValueError(
            f"{args.dataset_name} has the answers of {len(target.teachers)} teachers, but --teacher_name_or_path "
            f"names {len(names)}; name as many, in the same order."
        )
    members = []
    for name, teacher in zip(names, target.teachers, strict=True):
        own = preprocessing_from(teacher["preprocessing"])
        member = named_member(name, args.teacher_checkpoint, teacher["revision"], own)
        if member.weight_hash != teacher["weight_hash"]:
            raise ValueError(
                f"{name} has other weights ({member.weight_hash}) than the teacher that answered, {teacher['name']} "
                f"({teacher['weight_hash']}); name that one with --teacher_name_or_path."
            )
        recorded = {"weight": teacher["weight"], "class_map": teacher.get("class_map")}
        members.append(replace(member, preprocessing=own, **recorded))
    return Teacher(members, target.temperature, target.class_map)


if __name__ == "__main__":
    main()
