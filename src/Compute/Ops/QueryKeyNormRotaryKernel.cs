using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary><see cref="QueryKeyNormRotary"/> on a GPU, heads of at most 128 channels.</summary>
internal static class QueryKeyNormRotaryKernel
{
    private const string File = "qk_norm_rotary.cu";
    private const int ForwardThreads = 128, BackwardThreads = 64, MaxWidth = 128;
    private const int BackwardBlocks = 8 * 132; // of a Hopper GPU's 132 multiprocessors: as many as run at once

    /// <summary>True when the forward computes heads like these.</summary>
    public static bool Supports(Tensor heads_TQD) => heads_TQD.is_contiguous() && SupportsHeads(heads_TQD);

    /// <summary>True when the backward takes gradients like these.</summary>
    public static bool Supports(AttentionGradients gradients) =>
        SupportsHeads(gradients.Query) && SupportsHeads(gradients.Key) && SupportsHeads(gradients.Value);

    /// <summary>See <see cref="QueryKeyNormRotary.Forward"/>.</summary>
    public static (Tensor QueryKey, Tensor InverseRms) Forward(
        Tensor heads_TQD, int numHeads, int numGroups, QueryKeyNorm norm, RotaryEmbedding rotary, Tensor positions_T)
    {
        var (tokens, width, heads) = (heads_TQD.shape[0], heads_TQD.shape[2], numHeads + numGroups);
        var output_TAD = empty([tokens, heads, width], heads_TQD.dtype, heads_TQD.device);
        var inverseRms = empty([tokens, heads, 1], ScalarType.Float32, heads_TQD.device);
        CudaKernels.Of(File, KernelElement.Define(heads_TQD)).Launch(
            "qk_norm_rotary_forward", (uint)((tokens * heads * LanesPerHead(heads_TQD) + ForwardThreads - 1) / ForwardThreads), 1, ForwardThreads, 0,
            Pointer(heads_TQD), Pointer(norm.QueryWeight), Pointer(norm.KeyWeight), Pointer(rotary.Cosines), Pointer(rotary.Sines), Pointer(positions_T),
            Pointer(output_TAD), Pointer(inverseRms), tokens, numHeads, numGroups, heads_TQD.stride(0), width, CudaKernels.Float(norm.Epsilon));
        return (output_TAD, inverseRms);
    }

    /// <summary>See <see cref="QueryKeyNormRotary.Backward"/>.</summary>
    public static (Tensor GradHeads, Tensor? GradWeightParts) Backward(
        AttentionGradients gradients, (Tensor QueryKey, Tensor InverseRms)? raw, QueryKeyNorm? norm, RotaryEmbedding rotary, Tensor positions_T)
    {
        var (query, key, value) = gradients;
        var (tokens, width, numHeads, numGroups) = (query.shape[0], query.shape[2], query.shape[1], key.shape[1]);
        var grad_TQD = empty([tokens, numHeads + 2 * numGroups, width], query.dtype, query.device);
        var threads = Threads(grad_TQD.shape[1], query);
        var groups = threads / LanesPerHead(query);
        var rounds = Rounds(grad_TQD.shape[1], query);
        var blocks = Math.Min(BackwardBlocks / rounds, tokens);
        var partial = norm is null ? null : empty([rounds * blocks, 2, width], ScalarType.Float32, query.device);
        CudaKernels.Of(File, KernelElement.Define(query)).Launch(
            "qk_norm_rotary_backward", (uint)blocks, (uint)rounds, threads, (uint)(groups * 2 * width * sizeof(float)),
            Pointer(query), Pointer(key), Pointer(value), Pointer(raw?.QueryKey), Pointer(raw?.InverseRms), Pointer(norm?.QueryWeight), Pointer(norm?.KeyWeight),
            Pointer(rotary.Cosines), Pointer(rotary.Sines), Pointer(positions_T), Pointer(grad_TQD), Pointer(partial), tokens, numHeads, numGroups,
            query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1), raw?.QueryKey.stride(0) ?? 0, width);
        return (grad_TQD, partial);
    }

    private static bool SupportsHeads(Tensor x)
    {
        if (!KernelElement.Supports(x)) return false;
        var (width, vector) = (x.shape[2], KernelElement.VectorLength(x));
        return width <= MaxWidth && width % (2 * vector) == 0 && x.stride(2) == 1 && x.stride(0) % vector == 0 && x.stride(1) % vector == 0 && KernelElement.IsAligned(x);
    }

    /// <summary>Each lane holds one vector of each half of a head.</summary>
    private static uint LanesPerHead(Tensor x) => (uint)(MaxWidth / 2 / KernelElement.VectorLength(x));

    /// <summary>Whole warps for all heads of a token at once, or for an even part of them when they are many.</summary>
    private static uint Threads(long heads, Tensor x)
    {
        var rounds = Rounds(heads, x);
        var threads = (uint)((heads + rounds - 1) / rounds) * LanesPerHead(x);
        return (threads + 31) / 32 * 32;
    }

    private static long Rounds(long heads, Tensor x)
    {
        var groupsMax = BackwardThreads / LanesPerHead(x);
        return (heads + groupsMax - 1) / groupsMax;
    }

    private static long Pointer(Tensor? tensor) => tensor is null ? 0 : Dispatcher.DataPointer(tensor);
}
