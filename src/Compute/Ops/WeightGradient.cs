using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Adds weight gradients to main gradients.</summary>
public static class WeightGradient
{
    /// <summary>
    /// MainGrad [O, I] += gradOutputᵀ · input. When model and main gradient have the same dtype the product accumulates in place;
    /// on a GPU the product of 16-bit matrices
    /// accumulates in fp32 inside the GEMM; elsewhere it is formed in the model dtype and added in fp32.
    /// </summary>
    /// <param name="gradOutput_TO">[T, O] in the model dtype.</param>
    /// <param name="input_TI">[T, I] in the model dtype.</param>
    public static void Accumulate(Parameter parameter, Tensor gradOutput_TO, Tensor input_TI, ProductOptions options)
    {
        var (mainGrad, isEmpty) = parameter.Slot.TakeForWriting();
        Accumulate(mainGrad, gradOutput_TO, input_TI, options, isEmpty);
    }

    /// <summary>The same for a part of a main gradient, such as one expert's: a view [O, I].</summary>
    /// <param name="overwrite">What the view holds does not count: the product takes its place.</param>
    public static void Accumulate(Tensor mainGrad, Tensor gradOutput_TO, Tensor input_TI, ProductOptions options, bool overwrite = false)
    {
        using var scope = NewDisposeScope();
        var transposed = gradOutput_TO.t();
        if (mainGrad.dtype == gradOutput_TO.dtype) mainGrad.addmm_(transposed, input_TI, beta: overwrite ? 0 : 1, alpha: 1);
        else if (mainGrad.device_type == DeviceType.CUDA) CudaBlas.AccumulateTransposed(mainGrad, gradOutput_TO, input_TI, overwrite, measure: !options.IsDeterministic);
        else if (overwrite) mainGrad.copy_(transposed.mm(input_TI));
        else mainGrad.add_(transposed.mm(input_TI));
    }

    /// <summary>MainGrad [O] += sum of gradOutput over the tokens.</summary>
    public static void AccumulateBias(Parameter parameter, Tensor gradOutput_TO)
    {
        using var scope = NewDisposeScope();
        var mainGrad = parameter.MainGrad;
        mainGrad.add_(gradOutput_TO.sum(dim: 0, type: mainGrad.dtype));
    }

    /// <summary>MainGrad += gradient (same shape, any floating dtype).</summary>
    public static void Add(Parameter parameter, Tensor gradient)
    {
        var (mainGrad, isEmpty) = parameter.Slot.TakeForWriting();
        GradientAccumulation.Add(mainGrad, gradient, overwrite: isEmpty);
    }

    /// <summary>MainGrad [O] += the sum over P of <paramref name="parts_PO"/>, in order.</summary>
    public static void AddSum(Parameter parameter, Tensor parts_PO)
    {
        var (mainGrad, isEmpty) = parameter.Slot.TakeForWriting();
        GradientAccumulation.AddSum(mainGrad, parts_PO, overwrite: isEmpty);
    }
}
