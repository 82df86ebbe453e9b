using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// <see cref="SwiGlu"/> of experts' rows, each row times the router's weight: w · silu(gate) · up. In plain libtorch operations, and on a GPU in one
/// kernel each way (<c>Kernels/swiglu.cu</c>), which rounds once.
/// </summary>
/// <remarks>Shape letters: R rows, F features.</remarks>
public static class WeightedSwiGlu
{
    /// <param name="gateUp_R2F">[R, 2F], gate first.</param>
    /// <param name="weights_R">[R] in a dtype at least as precise.</param>
    /// <returns>[R, F].</returns>
    public static Tensor Forward(Tensor gateUp_R2F, Tensor weights_R)
    {
        if (SwiGluKernel.Supports(gateUp_R2F, weights_R)) return SwiGluKernel.ForwardWeighted(gateUp_R2F, weights_R);
        using var activation_RF = SwiGlu.Forward(gateUp_R2F);
        return Weighted(activation_RF, weights_R);
    }

    /// <summary>See <see cref="SwiGlu.GivesOutputAgain"/>.</summary>
    public static bool GivesOutputAgain(Tensor gateUp_R2F, Tensor weights_R) => SwiGluKernel.Supports(gateUp_R2F, weights_R);

    /// <param name="gradOutput_RF">[R, F].</param>
    /// <param name="wantsOutput">Compute the forward's output again, the same bits.</param>
    /// <returns>Gradients [R, 2F], and [R] in the dtype of the weights; the output [R, F] or null.</returns>
    public static (Tensor GradGateUp_R2F, Tensor GradWeights_R, Tensor? Output_RF) Backward(
        Tensor gradOutput_RF, Tensor gateUp_R2F, Tensor weights_R, bool wantsOutput)
    {
        using var scope = NewDisposeScope();
        if (GivesOutputAgain(gateUp_R2F, weights_R))
        {
            var (gradFused_R2F, gradFactors_R, again_RF) = SwiGluKernel.BackwardWeighted(gradOutput_RF.contiguous(), gateUp_R2F, weights_R, wantsOutput);
            return (gradFused_R2F.MoveToOuterDisposeScope(), gradFactors_R.MoveToOuterDisposeScope(), again_RF?.MoveToOuterDisposeScope());
        }
        var activation_RF = SwiGlu.Forward(gateUp_R2F);
        var gradWeights_R = (gradOutput_RF.to_type(weights_R.dtype) * activation_RF).sum(dim: -1);
        var (gradGateUp_R2F, _) = SwiGlu.Backward(Weighted(gradOutput_RF, weights_R), gateUp_R2F);
        var output_RF = wantsOutput ? Weighted(activation_RF, weights_R).MoveToOuterDisposeScope() : null;
        return (gradGateUp_R2F.MoveToOuterDisposeScope(), gradWeights_R.MoveToOuterDisposeScope(), output_RF);
    }

    /// <summary>Multiplied in the dtype of the weights, which is the more precise one, then rounded once.</summary>
    private static Tensor Weighted(Tensor x_RF, Tensor weights_R)
    {
        using var column_R1 = weights_R.unsqueeze(1);
        using var product_RF = x_RF * column_R1;
        return product_RF.to_type(x_RF.dtype);
    }
}
