"""What every flag is called and means, in the order of ``--help`` and MLproject."""

from typing import NamedTuple

AUTO = "auto"


class Option(NamedTuple):
    """A flag beside the config: default as text, and help."""

    default: str
    help: str


OPTIONS: dict[str, Option] = {
    "preset": Option(AUTO, "auto: full where CUDA is present, quick elsewhere; full; quick"),
    "result_dir": Option("results", "folder of all run folders"),
    "feature_dir": Option(
        AUTO, "encoded images that all runs read; auto: DINOMALY_HD_FEATURES, else .features"
    ),
    "feature_gb": Option(AUTO, "GiB of feature_dir; auto: a quarter of the free disk, 50 at most; 0: none"),
    "experiment": Option("dinomaly-hd", "MLflow experiment (mlflow run chooses its own)"),
    "run_name": Option(AUTO, "auto: {variant}-{domains}-s{seed}"),
    "resume": Option(
        AUTO, "auto: go on with an interrupted run of the same configuration; never; or a run id or folder"
    ),
}
"""Flags that are not part of a run's config: name -> (default, help)."""

HELP: dict[str, str] = {
    "seed": "of initial weights, order, dropout and the held-out split",
    "bottleneck_dropout": "element dropout of the bottleneck, 0..1, constant",
    "row_p": "share of token rows with a dropped segment [.15-.25], or of masked rows, 0..1",
    "decoder_blocks": "decoder blocks whose values drop: last-half, 4-7 or 1,3 (from 0)",
    "decoder_heads": "share of a block's heads whose values drop, 0..1",
    "keys": "true: the features of the keys drop too",
    "decoder_warmup": "optimizer steps until row_p is reached in the decoder",
    "row_radius": "columns to either side that a query cannot read, or full: the whole row",
    "seg_len": "tokens of a segment, 1..grid width [2-3]",
    "seg_drop_p": "chance of each token of a segment to be dropped, 0..1 [.5-.7]",
    "elem_p": "element dropout beside the segments, 0..1 [0-.15]",
    "disable_segment": "true: no segments, only elem_p",
    "discard_final": "share of easy tokens after warm-up, 0..1",
    "discard_warmup": "optimizer steps until discard_final",
    "discard_factor": "share of gradient left to easy tokens, 0..1",
    "gem_factor": "share of gradient left to easy tokens of the pooled map, 0..1",
    "gem_p": "exponent of the generalised mean over groups, above 0",
    "focal_gamma": "exponent of the focal weights, 0 or more",
    "ape_scale": "how strongly the discard rate follows the angular power entropy, 0: not at all",
    "scale_weights": "learned, or a weight for each group such as .35,.65",
    "aux_weight": "of the band classifier's cross-entropy in the loss, 0 or more",
    "aux_score_weight": "of its logit in the image score, 0: not used",
    "q_percent": "final share of token distances in the loss, percent, (0, 100]",
    "q_warmup": "optimizer steps over which q falls from 100",
    "topk_scope": "what shares one tail: batch, sample, domain",
    "tail_context": "half-width k of the 1 x (2k+1) mean by which the tail is chosen, 0: off",
    "layers": "auto, or the encoder's layers that are read, such as 2,3 (CNN stages) or 8,11 (ViT blocks)",
    "coreset_sampling_ratio": "share of the patches that the memory bank keeps, (0, 1]",
    "num_neighbors": "neighbours in the bank that re-weight an image's score, 1: none",
    "context": "half-widths of horizontal means appended to each patch, such as 2 or 2,3; 0: none",
    "width": "factor on the width of both networks, 1 as published",
    "image_score": "max (largest anomaly probability) or top_share (mean of the largest 1 %)",
    "fault_source": "synthetic faults: perlin, patch, band",
    "anomaly_probability": "share of images with a synthetic fault, 0..1",
    "anomaly_source_path": "textures of perlin faults: images (others of the batch), textures, or a folder",
    "map_rows": "rows of a map before it is resized, of which a band is 1 to 3 high",
    "patch_width_range": "pixels, LOW-HIGH",
    "patch_ratio_range": "height / width of a patch, LOW-HIGH; below 1 is wide",
    "patch_count": "patches of a faulty image",
    "severity_max": "largest factor on an added patch, above 0",
    "severity_head_mode": "activations that the severity is read from: single_scale, multi_scale",
    "severity_head_pooling_type": "gap or spatial_aware",
    "severity_head_hidden_dim": "width of the head's hidden layer",
    "severity_head_spatial_size": "side of the grid that activations are averaged to",
    "severity_head_use_spatial_attention": "true or false: weigh places before they are averaged",
    "severity_weight": "of the severity in the loss, 0 or more",
    "severity_loss_type": "mse or smooth_l1",
    "score_combination": "of probability and severity: simple_average, weighted_average, maximum",
    "severity_weight_for_combination": "the severity's share in weighted_average, 0..1",
    "trivial_score": "max, mean, std, contrast",
    "class_token": "keep (original) or remove class and register tokens",
    "decoder_depth": "decoder blocks, even",
    "row_context": "half-width k of the 1 x (2k+1) mean along rows before scoring, 0: off",
    "border": "zero (original) or reflect padding of the map's blur",
    "target_layers": "auto, or the transformer blocks whose outputs are rebuilt, such as 2,3,4,5,6,7,8,9",
    "encoder": "dinov2reg_vit_{small,base,large}_14, efficientnet_lite0, or any timm name",
    "encoder_weights": "auto (hub, or the embedded package), hub, random, or a .safetensors/.pth file",
    "image_size": "resize to N or HEIGHTxWIDTH pixels",
    "crop": "centre crop to N or HEIGHTxWIDTH pixels, or none",
    "data_root": "folder with domain_A/train/good ..., or simulated",
    "simulate_size": "size of the simulated data: tiny, quick, full",
    "simulate_seed": "seed of the simulated data",
    "domains": "comma-separated, e.g. A,B,C,D or folder names",
    "train_domains": "all, or those of domains that are trained on; the others are tested only",
    "conditions": "cold and warm: auto, halves (first half of each test folder is cold), none",
    "val_split_ratio": "share of training normals held out for thresholds and val/loss, 0..1",
    "num_workers": "processes that read images; changes no result",
    "max_steps": "optimizer steps",
    "max_epochs": "0, or the passes over the training images that set max_steps",
    "optimizer": "stable_adamw, adamw, adam",
    "stop_step": "optimizer steps after which training ends; 0: max_steps, whose schedule it has anyhow",
    "start_from": "none, or the finished run (folder or MLflow id) whose weights are the start",
    "batch_size": "images of a step",
    "learning_rate": "after warm-up",
    "final_rate_share": "share of learning_rate that is left at the last step, 0..1",
    "warmup_steps": "optimizer steps of linear warm-up",
    "lr_schedule_interval": "step; epoch only repeats runs of old code",
    "weight_decay": "decoupled",
    "gradient_clip": "largest gradient norm, 0: not clipped",
    "on_nonfinite": "stop or skip when loss or gradient is NaN or infinite",
    "checkpoint_interval": "optimizer steps between checkpoints",
    "val_check_interval": "optimizer steps between val/loss on held-out normals; 0: never, or each "
    "epoch where early_stopping_patience is set",
    "early_stopping_patience": "validations without a better val/loss that end the training, whose best "
    "weights are tested; 0: the last weights are",
    "validate_on": "held_out normals, or source_test: the older rule, which chooses by test labels",
    "precision": "32, or bf16 for GPUs: autocast; an encoder is run, and what it gives is kept, in float16",
    "gpu": "auto, cpu, or the index of a GPU",
    "cache": "encode images once: auto (memory, on CPUs files too), memory, files (for later runs), off",
    "eval_batch_size": "images encoded or scored at once",
    "map_size": "anomaly maps, N or HEIGHTxWIDTH pixels",
    "maps_per_group": "anomaly maps drawn per domain, label and rank (highest, threshold, lowest)",
    "synthetic_copies": "also tell this many banded copies of each held-out normal from it; 0: not",
}
"""Flags that set one value of the config, in the order of ``--help`` and MLproject."""
