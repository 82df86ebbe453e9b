using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>Compares a layer's explicit backward with autograd through the same forward, in double precision.</summary>
public static class LayerCheck
{
    /// <summary>Relative L2 error allowed in double precision: another order of summation, nothing more.</summary>
    public const double Tolerance = 1e-9;

    /// <summary>
    /// Runs forward and both backward halves of <paramref name="layer"/> and of an <see cref="AutogradIsland"/> on the same parameters, and
    /// throws when output, input gradient or a weight gradient differ, or when the layer leaves something in its store.
    /// </summary>
    public static void EqualsIsland(ILayer layer, IslandForward reference, Tensor x, ForwardContext context)
    {
        using var scope = NewDisposeScope();
        using var gradients = TestModels.AttachGradients(layer.Parameters);
        var actual = Run(layer, x, context, gradOutput: null);
        var expected = Run(new AutogradIsland(reference, layer.Parameters), x, context, actual.GradOutput);
        Compare("output", actual.Output, expected.Output);
        if (x.is_floating_point()) Compare("input gradient", actual.GradInput, expected.GradInput);
        for (var i = 0; i < layer.Parameters.Count; i++)
            Compare($"gradient of {layer.Parameters[i].Name}", actual.WeightGradients[i], expected.WeightGradients[i]);
    }

    /// <summary>Relative L2 distance; throws above the tolerance.</summary>
    public static void Compare(string what, Tensor actual, Tensor expected, double tolerance = Tolerance)
    {
        if (!actual.shape.SequenceEqual(expected.shape))
            throw new InvalidOperationException($"{what}: shape [{string.Join(", ", actual.shape)}], expected [{string.Join(", ", expected.shape)}]");
        using var scope = NewDisposeScope();
        var distance = (actual - expected).to_type(ScalarType.Float64).norm().item<double>();
        var size = expected.to_type(ScalarType.Float64).norm().item<double>();
        if (!(distance <= tolerance * Math.Max(size, 1e-30))) throw new InvalidOperationException($"{what}: relative L2 error {distance / size}");
    }

    private static Result Run(ILayer layer, Tensor x, ForwardContext context, Tensor? gradOutput)
    {
        using var saved = new Saved(context);
        foreach (var parameter in layer.Parameters) parameter.MainGrad.zero_();
        var output = layer.Forward(x, saved);
        gradOutput ??= output.dim() == 0 ? full([], context.LossFactor, output.dtype) : randn_like(output);
        var gradInput = layer.BackwardInput(gradOutput, saved);
        layer.BackwardWeight(saved);
        if (saved.SizeBytes != 0) throw new InvalidOperationException($"{layer.GetType().Name} left {saved.SizeBytes} bytes in its store.");
        return new Result(output, gradInput, gradOutput, [.. layer.Parameters.Select(parameter => parameter.MainGrad.clone())]);
    }

    private sealed record Result(Tensor Output, Tensor GradInput, Tensor GradOutput, Tensor[] WeightGradients);
}
