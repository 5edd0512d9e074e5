"""Trainers that nnU-Net finds itself (``nnUNet_extTrainer``); it imports every module here, so keep others out."""
