using Megatron.Compute.Configuration;

namespace Megatron.Compute.Ops;

/// <summary>
/// Inverse frequencies of the rotary embedding with the scaling rules of the model family (numerics 3.11): plain arithmetic in fp32, the
/// precision of the published code, so that a table equals the one a model was trained with.
/// </summary>
public static class RotaryFrequencies
{
    /// <summary>θ_i for each pair of channels, and the factor that multiplies cos and sin.</summary>
    /// <param name="numPositions">The model's max_position_embeddings: yarn's original length when the file names none.</param>
    /// <exception cref="InvalidOperationException">The scaling type is unknown; readers refuse it earlier.</exception>
    public static (float[] InverseFrequencies, double Magnitude) Compute(RotaryConfig config, int headDim, int numPositions)
    {
        var plain = Plain(config.Base, headDim);
        return config.ScalingType switch
        {
            "default" => (plain, 1.0),
            "linear" => (Array.ConvertAll(plain, frequency => frequency / (float)config.Factor), 1.0),
            "llama3" => (Array.ConvertAll(plain, frequency => Llama3(frequency, config)), 1.0),
            "yarn" => (Yarn(plain, config, headDim, numPositions), YarnMagnitude(config)),
            _ => throw new InvalidOperationException($"Rotary scaling '{config.ScalingType}' is unknown."),
        };
    }

    private static float[] Plain(double rotaryBase, int headDim)
    {
        var result = new float[headDim / 2];
        for (var i = 0; i < result.Length; i++) result[i] = 1f / MathF.Pow((float)rotaryBase, 2f * i / headDim);
        return result;
    }

    /// <summary>Long wavelengths are divided by the factor, short ones kept, those between blended (Llama 3.1's rule).</summary>
    private static float Llama3(float frequency, RotaryConfig config)
    {
        float low = (float)config.LowFreqFactor, high = (float)config.HighFreqFactor, factor = (float)config.Factor;
        float original = config.OriginalMaxPositionEmbeddings;
        var wavelength = 2f * MathF.PI / frequency;
        if (wavelength < original / high) return frequency;
        if (wavelength > original / low) return frequency / factor;
        var smooth = (original / wavelength - low) / (high - low);
        return (1f - smooth) * frequency / factor + smooth * frequency;
    }

    /// <summary>arXiv 2309.00071, section 3.2: interpolate slow channels, keep fast ones, ramp between.</summary>
    private static float[] Yarn(float[] plain, RotaryConfig config, int headDim, int numPositions)
    {
        var original = config.OriginalMaxPositionEmbeddings > 0 ? config.OriginalMaxPositionEmbeddings : numPositions;
        var low = CorrectionDim(config.BetaFast, headDim, config.Base, original);
        var high = CorrectionDim(config.BetaSlow, headDim, config.Base, original);
        if (config.Truncate) (low, high) = (Math.Floor(low), Math.Ceiling(high));
        (low, high) = (Math.Max(low, 0), Math.Min(high, headDim - 1));
        if (low == high) high += 0.001;

        var result = new float[plain.Length];
        for (var i = 0; i < plain.Length; i++)
        {
            var keep = 1f - (float)Math.Clamp((i - low) / (high - low), 0, 1);
            result[i] = plain[i] / (float)config.Factor * (1f - keep) + plain[i] * keep;
        }
        return result;
    }

    private static double CorrectionDim(double rotations, int headDim, double rotaryBase, int original) =>
        headDim * Math.Log(original / (rotations * 2 * Math.PI)) / (2 * Math.Log(rotaryBase));

    private static double YarnMagnitude(RotaryConfig config)
    {
        if (config.AttentionFactor is { } given) return given;
        if (config.MScale is > 0 and { } scale && config.MScaleAllDim is > 0 and { } all)
            return MScale(config.Factor, scale) / MScale(config.Factor, all);
        return MScale(config.Factor, 1);
    }

    private static double MScale(double factor, double weight) => factor <= 1 ? 1 : 0.1 * weight * Math.Log(factor) + 1;
}
