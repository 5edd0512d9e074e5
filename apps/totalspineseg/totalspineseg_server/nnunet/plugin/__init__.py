"""Hold the trainers that nnU-Net finds itself (``nnUNet_extTrainer``); it imports every module here, so add no
others."""
