namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: mixed precision (reference 1.8).
public sealed partial record TrainingConfig
{
    [Option("fp16", "Train in float16 with dynamic loss scaling.", MixedPrecision, DefaultFrom = "torch_dtype")]
    public bool? Fp16 { get; init; }

    [Option("bf16", "Train in bfloat16; gradients, masters and moments stay in float32.", MixedPrecision, DefaultFrom = "torch_dtype")]
    public bool? Bf16 { get; init; }

    [Option("apply_query_key_layer_scaling", "Divide attention scores by the layer number.", MixedPrecision, DefaultFrom = "false")]
    public bool? ApplyQueryKeyLayerScaling { get; init; }

    [Option("attention_softmax_in_fp32", "Softmax of the attention in float32: always so here.", MixedPrecision)]
    public bool AttentionSoftmaxInFp32 { get; init; } = true;

    [Option("initial_loss_scale", "First dynamic loss scale of fp16.", MixedPrecision)]
    public double InitialLossScale { get; init; } = 4294967296;

    [Option("min_loss_scale", "Least dynamic loss scale of fp16.", MixedPrecision)]
    public double MinLossScale { get; init; } = 1;

    [Option("loss_scale_window", "Steps without overflow after which the fp16 loss scale doubles.", MixedPrecision)]
    public int LossScaleWindow { get; init; } = 1000;

    [Option("hysteresis", "Overflows in sequence before the fp16 loss scale halves.", MixedPrecision)]
    public int Hysteresis { get; init; } = 2;

    [Option("fp8_format", "Form the products of linear layers in float8 of this kind; head, experts and master weights keep theirs.", MixedPrecision, Choices = "e4m3|hybrid")]
    public string? Fp8Format { get; init; }
}
