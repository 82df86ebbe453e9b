using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Gated activation silu(gate) · up (arXiv 2002.05202), in plain libtorch operations. Gate and up are the two halves of the last
/// dimension, as the fused projection leaves them.
/// </summary>
public static class SwiGlu
{
    /// <param name="gateUp_T2F">[T, 2F]: gate, then up.</param>
    /// <returns>[T, F].</returns>
    public static Tensor Forward(Tensor gateUp_T2F)
    {
        if (SwiGluKernel.Supports(gateUp_T2F)) return SwiGluKernel.Forward(gateUp_T2F);
        var (gate, up) = Halves(gateUp_T2F);
        using (gate)
        using (up)
            return nn.functional.silu(gate).mul_(up);
    }

    /// <summary>
    /// True where <see cref="Backward"/> gives the output again for the price of writing it, with the bits of <see cref="Forward"/>: it need not be kept
    /// meanwhile.
    /// </summary>
    public static bool GivesOutputAgain(Tensor gateUp_T2F) => SwiGluKernel.Supports(gateUp_T2F);

    /// <summary>Gradient of the fused input.</summary>
    /// <param name="gradOutput_TF">[T, F].</param>
    /// <returns>[T, 2F], and the output [T, F] where <see cref="GivesOutputAgain"/>, else null.</returns>
    public static (Tensor GradGateUp_T2F, Tensor? Output_TF) Backward(Tensor gradOutput_TF, Tensor gateUp_T2F)
    {
        if (GivesOutputAgain(gateUp_T2F))
        {
            using var contiguous_TF = gradOutput_TF.contiguous();
            return SwiGluKernel.Backward(contiguous_TF, gateUp_T2F);
        }
        var (gate, up) = Halves(gateUp_T2F);
        var result = empty_like(gateUp_T2F);
        var (gradGate, gradUp) = Halves(result);
        using var sigmoid = gate.sigmoid();
        using var silu = sigmoid.mul(gate);
        gradUp.copy_(gradOutput_TF).mul_(silu);

        // silu'(g) = s + silu·(1 − s), with s = sigmoid(g).
        using var slope = silu.addcmul_(silu, sigmoid, value: -1).add_(sigmoid);
        gradGate.copy_(gradOutput_TF).mul_(up).mul_(slope);
        foreach (var view in (Tensor[])[gate, up, gradGate, gradUp]) view.Dispose();
        return (result, null);
    }

    private static (Tensor Gate, Tensor Up) Halves(Tensor gateUp)
    {
        var width = gateUp.shape[^1] / 2;
        return (gateUp.narrow(-1, 0, width), gateUp.narrow(-1, width, width));
    }
}
