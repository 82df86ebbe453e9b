namespace Megatron.Compute.Models;

/// <summary>
/// Names of tensors in Hugging Face checkpoints of the Qwen and Llama families; layers hang their own names below <see cref="Layer"/>.
/// </summary>
public static class HfTensorNames
{
    /// <summary>[V, H].</summary>
    public const string Embedding = "model.embed_tokens.weight";

    /// <summary>[H].</summary>
    public const string FinalNorm = "model.norm.weight";

    /// <summary>[V, H]; absent when tied to the embedding.</summary>
    public const string Head = "lm_head.weight";

    /// <summary>Prefix of a layer.</summary>
    /// <param name="layerIndex">0-based global layer.</param>
    public static string Layer(int layerIndex) => $"model.layers.{layerIndex}";
}
