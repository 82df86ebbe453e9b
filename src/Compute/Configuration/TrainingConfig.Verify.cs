namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: verification.
public sealed partial record TrainingConfig
{
    [Option("golden", "Folder with golden.safetensors and golden.json to compare with.", Verify)]
    public string? Golden { get; init; }

    [Option("preset", "Shape that megatron benchmark measures, e.g. qwen3-4b; qwen3-4b:8 keeps 8 layers.", Verify)]
    public string? Preset { get; init; }

    [Option("profile", "File for a Chrome trace of one training step on the GPU; also prints the step's kernels by kind (megatron benchmark).", Verify)]
    public string? Profile { get; init; }

    [Option("kernels", "Compare every GPU kernel with its twin in libtorch operations and measure its bandwidth, instead of a step (megatron benchmark).", Verify)]
    public bool Kernels { get; init; }

    [Option("dump", "File for what was computed, with the tensor names of golden.safetensors.", Verify)]
    public string? Dump { get; init; }
}
