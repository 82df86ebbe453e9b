namespace Megatron.Compute.Models;

/// <summary>The supported architectures. A new one of the same shape is one entry; a new block comes with its own layer.</summary>
public static class ModelRegistry
{
    /// <summary>All families, by Hugging Face class.</summary>
    public static IReadOnlyList<ModelFamily> Families { get; } =
    [
        new() { Architecture = "LlamaForCausalLM", ModelType = "llama" },
        new() { Architecture = "Qwen2ForCausalLM", ModelType = "qwen2", HasQkvBias = true },
        new() { Architecture = "Qwen2MoeForCausalLM", ModelType = "qwen2_moe", HasQkvBias = true, HasExperts = true, HasSharedExpert = true },
        new() { Architecture = "Qwen3ForCausalLM", ModelType = "qwen3", HasQkNorm = true, DefaultHeadDim = 128 },
        new() { Architecture = "Qwen3MoeForCausalLM", ModelType = "qwen3_moe", HasQkNorm = true, HasExperts = true },
    ];

    /// <summary>The family of a Hugging Face class; null when it is not supported.</summary>
    public static ModelFamily? Find(string architecture) =>
        Families.FirstOrDefault(family => family.Architecture == architecture);
}
