using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// One product for each expert over rows that lie together. On a GPU, for bf16, all experts in one launch (libtorch's <c>_grouped_mm</c>); elsewhere
/// one product after another. The host does not learn how many rows an expert has unless it must.
/// </summary>
/// <remarks>Shape letters: R rows, E experts, K inputs, N outputs.</remarks>
public static class GroupedProduct
{
    /// <summary>Row r of expert e gives left[r] · weights[e].</summary>
    /// <param name="left_RK">Rows sorted by expert.</param>
    /// <param name="weights_EKN">A view in any order of its last two dimensions.</param>
    /// <param name="ends_E">[E] int32 on the rows' device: the row after the last of each expert.</param>
    /// <returns>[R, N].</returns>
    public static Tensor Rows(Tensor left_RK, Tensor weights_EKN, Tensor ends_E)
    {
        if (IsFused(left_RK) && left_RK.shape[0] > 0)
        {
            return Dispatcher.Call(
                "aten::_grouped_mm", "", 1, left_RK, weights_EKN, StableValue.Optional(ends_E), StableValue.Optional((Tensor?)null), StableValue.Optional((long?)null))[0];
        }
        var result_RN = empty([left_RK.shape[0], weights_EKN.shape[2]], left_RK.dtype, left_RK.device);
        ForEach(ends_E, (expert, start, count) =>
            result_RN.narrow(0, start, count).addmm_(left_RK.narrow(0, start, count), weights_EKN.select(0, expert), beta: 0, alpha: 1));
        return result_RN;
    }

    /// <summary>
    /// MainGrad[e] += gradOutputᵀ · input over the rows of expert e. On a GPU the products are rounded to bf16 once before they are added in fp32.
    /// </summary>
    /// <param name="parameter">[E, N, K].</param>
    /// <param name="gradOutput_RN">Rows sorted by expert.</param>
    /// <param name="input_RK">Likewise.</param>
    /// <param name="ends_E">As in <see cref="Rows"/>.</param>
    public static void AccumulateWeights(Parameter parameter, Tensor gradOutput_RN, Tensor input_RK, Tensor ends_E)
    {
        using var scope = NewDisposeScope();
        if (IsFused(input_RK) && input_RK.shape[0] > 0)
        {
            var products_ENK = Dispatcher.Call(
                "aten::_grouped_mm", "", 1, gradOutput_RN.t(), input_RK, StableValue.Optional(ends_E),
                StableValue.Optional((Tensor?)null), StableValue.Optional((long?)null))[0];
            var (mainGrad, isEmpty) = parameter.Slot.TakeForWriting();
            GradientAccumulation.Add(mainGrad, products_ENK, overwrite: isEmpty);
            return;
        }
        ForEach(ends_E, (expert, start, count) =>
            WeightGradient.Accumulate(parameter.MainGrad.select(0, expert), gradOutput_RN.narrow(0, start, count), input_RK.narrow(0, start, count), ProductOptions.Unmeasured));
    }

    private static bool IsFused(Tensor x) => x.device_type == DeviceType.CUDA && x.dtype == ScalarType.BFloat16;

    /// <summary>Reads the borders on the host: for products one after another.</summary>
    private static void ForEach(Tensor ends_E, Action<int, long, long> run)
    {
        using var onHost_E = ends_E.cpu();
        var (ends, start) = (onHost_E.data<int>().ToArray(), 0);
        for (var expert = 0; expert < ends.Length; expert++)
        {
            using var scope = NewDisposeScope();
            if (ends[expert] > start) run(expert, start, ends[expert] - start);
            start = ends[expert];
        }
    }
}
